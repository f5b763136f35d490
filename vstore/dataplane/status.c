/*
 * status.c - which parts of a disk have room of their own on the host: what the block map says, and inside a file that has
 * something there, what the host's file system says.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <unistd.h>

enum { MOST_LOOKS = 4096 }; /* extents of one call */

/* Whether the file has a hole at `offset`; *length is cut to where that ends. What cannot tell has none. */
static bool in_hole(const struct layer *layer, uint64_t offset, uint64_t *length)
{
	if (layer->flags & (VS_FILE_NULL | VS_FILE_BLOCK_DEVICE))
		return false;
	off_t data = lseek(layer->fd, (off_t)offset, SEEK_DATA);
	if (data < 0)
		return errno == ENXIO; /* nothing follows */
	if ((uint64_t)data > offset) {
		if ((uint64_t)data - offset < *length)
			*length = (uint64_t)data - offset;
		return true;
	}
	off_t hole = lseek(layer->fd, (off_t)offset, SEEK_HOLE);
	if (hole > data && (uint64_t)(hole - data) < *length)
		*length = (uint64_t)(hole - data);
	return false;
}

/* 1: the extent has room; 0: it has none, and reads as zeros; 2: both; -ENODATA: Python knows. */
static int extent_status(const struct vs_volume *volume, struct extent *extent)
{
	if (extent->state == VS_ZERO && extent->offset && volume->allocation.keeps_places)
		return in_hole(volume->layers[extent->layer], extent->offset, &extent->length) ? 0 : 2;
	if (reads_zero(extent))
		return 0;
	if (extent->state == VS_COMPRESSED)
		return 1;
	if (extent->state != VS_DATA && extent->state != VS_SHARED)
		return -ENODATA;
	return in_hole(volume->layers[extent->layer], extent->offset, &extent->length) ? 0 : 1;
}

int vs_volume_status(vs_volume *volume, uint64_t offset, uint64_t *length)
{
	uint64_t end, done = 0;
	int status = -ENODATA;

	if (!*length || __builtin_add_overflow(offset, *length, &end) || end > atomic_load(&volume->length))
		return -EINVAL;
	uint32_t entered = epoch_enter(volume);
	for (unsigned looks = 0; done < *length && looks < MOST_LOOKS; looks++) {
		struct extent extent = volume_extent(volume, offset + done, *length - done);
		int here = extent_status(volume, &extent);

		if (!done)
			status = here;
		if (here != status || status < 0)
			break;
		done += extent.length;
	}
	epoch_leave(volume, entered);
	*length = done;
	return status;
}
