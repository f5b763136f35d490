/*
 * copy_up.c - what a loop may not do: writes that cover a unit only in part, and the filling of what no write has
 * covered. Both read the old place and write the new one while the record is exclusive.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Waits until nobody writes to the units that are not valid, and keeps it so. Under the lock. */
void fresh_make_exclusive(struct vs_volume *volume, struct fresh *fresh)
{
	fresh->pins++; /* so that no new writer comes first */
	while (fresh->exclusive || fresh->writers)
		pthread_cond_wait(&volume->settled, &volume->lock);
	fresh->pins--;
	fresh->exclusive = true;
}

void fresh_end_exclusive(struct vs_volume *volume, struct fresh *fresh)
{
	fresh->exclusive = false;
	pthread_cond_broadcast(&volume->settled);
}

/* The bytes of a range of the block, wherever they are now. -ENODATA: Python has to compose them. */
static int read_old(struct vs_volume *volume, const struct fresh *fresh, uint64_t within, uint64_t length,
		    uint8_t *buffer)
{
	while (length) {
		struct extent extent = fresh_extent(volume, fresh, within, length);
		int error = 0;

		if (reads_zero(&extent))
			memset(buffer, 0, extent.length);
		else if (extent.state == VS_DATA || extent.state == VS_SHARED)
			error = blocking_extent(volume, &extent, IO_READ, buffer);
		else
			error = -ENODATA;
		if (error)
			return error;
		within += extent.length;
		buffer += extent.length;
		length -= extent.length;
	}
	return 0;
}

/* Lets the kernel copy from file to file: no buffer, one copy less, and some file systems share the blocks. False where it
 * cannot; then nothing counts as copied. */
static bool copy_in_kernel(const struct vs_volume *volume, const struct extent *old, const struct extent *new)
{
	const struct layer *from = volume->layers[old->layer], *to = volume->layers[new->layer];
	off_t in = (off_t)old->offset, out = (off_t) new->offset;
	uint64_t left = old->length;

	if ((from->flags | to->flags) & (VS_FILE_DIRECT | VS_FILE_NULL | VS_FILE_BLOCK_DEVICE | VS_FILE_MEMORY))
		return false;
	while (left) {
		ssize_t copied = copy_file_range(from->fd, &in, to->fd, &out, left, 0);

		if (copied <= 0)
			return false;
		left -= (uint64_t)copied;
	}
	return true;
}

/* Copies [within, within + length) from where it is to its own place, with `data` laid over [from, from + count). */
static int copy_up(struct vs_volume *volume, const struct fresh *fresh, uint64_t within, uint64_t length, uint64_t from,
		   const uint8_t *data, uint64_t count)
{
	struct extent old = fresh_extent(volume, fresh, within, length),
		      new = entry_extent(fresh->entry, within, length);
	void *buffer;
	int error = 0;

	if (reads_zero(&old) && old.length == length && fresh->zeroed && !count)
		return 0;
	if (!count && old.length == length && (old.state == VS_DATA || old.state == VS_SHARED) &&
	    copy_in_kernel(volume, &old, &new))
		return 0;
	if (posix_memalign(&buffer, 4096, length))
		return -ENOMEM;
	if (count < length)
		error = read_old(volume, fresh, within, length, buffer);
	if (!error) {
		if (count)
			memcpy((uint8_t *)buffer + (from - within), data, count);
		error = blocking_extent(volume, &new, IO_WRITE, buffer);
	}
	free(buffer);
	return error;
}

/* Whether some of these units are not as they were when the caller looked: `composed` ones were COMPRESSED. */
static bool is_stale(const struct vs_volume *volume, const struct fresh *fresh, uint64_t start, uint64_t end,
		     bool composed)
{
	struct extent extent = fresh_extent(volume, fresh, start, end - start);

	for (uint64_t at = start; at < end; at += 1ull << volume->allocation.sub_shift)
		if (fresh_is_valid(fresh, (uint32_t)(at >> volume->allocation.sub_shift)))
			return true;
	return composed && (extent.state != VS_COMPRESSED || extent.length < end - start);
}

/* Writes whole units, with `data` laid over them, if none of them is valid yet: else -EAGAIN, the caller cuts anew. Under
 * the lock, which it gives up meanwhile. */
static int write_units(struct vs_volume *volume, struct fresh *fresh, uint64_t within, const uint8_t *data,
		       uint64_t length, bool composed)
{
	uint32_t shift = volume->allocation.sub_shift;
	uint64_t mask = (1ull << shift) - 1, start = within & ~mask, end = (within + length + mask) & ~mask;
	int error = -EAGAIN;

	fresh->pins++; /* no commit_end() takes the record away while we wait */
	fresh_make_exclusive(volume, fresh);
	bool stale = is_stale(volume, fresh, start, end, composed);
	if (!stale && !fresh_place(volume, fresh)) {
		error = -ENOBUFS;
	} else if (!stale) {
		fresh_enqueue(volume, fresh);
		pthread_mutex_unlock(&volume->lock);
		error = copy_up(volume, fresh, start, end - start, within, data, length);
		pthread_mutex_lock(&volume->lock);
		if (!error)
			fresh_make_valid(volume, fresh, start, end - start);
	}
	fresh->pins--;
	fresh_end_exclusive(volume, fresh);
	return error;
}

/* A write of any alignment inside one block, by a thread that may wait. -ENOBUFS: the window is empty; -ENODATA: what it
 * does not cover of a unit has to be composed. */
int allocate_write(struct vs_volume *volume, uint64_t offset, const uint8_t *data, uint64_t length)
{
	uint64_t block = offset >> volume->shift, within = offset & (volume_block_size(volume) - 1), in_a_row;
	int error = -EAGAIN;

	pthread_mutex_lock(&volume->lock);
	uint64_t entry = map_look_up(volume, block, &in_a_row);
	struct fresh *fresh = entry_state(entry) == VS_DATA ? NULL : fresh_writable(volume, block, entry, &error);
	if (fresh)
		error = write_units(volume, fresh, within, data, length, false);
	pthread_mutex_unlock(&volume->lock);
	return error;
}

static int copy_units_up(struct vs_volume *volume, uint64_t offset, const void *data, uint64_t length)
{
	uint64_t block = offset >> volume->shift, within = offset & (volume_block_size(volume) - 1), in_a_row;
	int error = 0;

	pthread_mutex_lock(&volume->lock);
	uint64_t entry = map_look_up(volume, block, &in_a_row);
	struct extent now = entry_state(entry) == STATE_FRESH ? fresh_extent(volume, fresh_of(entry), within, length)
							      : entry_extent(entry, within, length);
	if (now.state == VS_COMPRESSED && now.length == length) {
		struct fresh *fresh = fresh_writable(volume, block, entry, &error);
		if (fresh)
			error = write_units(volume, fresh, within, data, length, true);
	}
	pthread_mutex_unlock(&volume->lock);
	return error == -EAGAIN ? 0 : error;
}

int vs_volume_copy_up(vs_volume *volume, uint64_t offset, const void *data, uint64_t length)
{
	uint64_t within = offset & (volume_block_size(volume) - 1), mask = (1ull << volume->allocation.sub_shift) - 1;

	if (!volume->allocation.keeps_masks || (offset | length) & mask || length > volume_block_size(volume) - within)
		return -EINVAL;
	uint32_t entered = epoch_enter(volume);
	/* the caller may hold what the one who quiesced waits for, so it may not wait here; its write will */
	int error = atomic_load(&volume->quiesced) ? 0 : copy_units_up(volume, offset, data, length);
	epoch_leave(volume, entered);
	return error;
}

/* A record whose own place has the whole block. */
static int become_whole(struct vs_volume *volume, uint64_t block, uint64_t entry, uint64_t place)
{
	int error;
	struct fresh *fresh = fresh_new(volume, block, entry, &error);

	if (!fresh)
		return error;
	fresh->entry = place;
	memset(fresh->valid, 0xFF, sizeof(fresh->valid));
	fresh->valid[0] &= volume_all_units(volume);
	fresh->old = (uint64_t)VS_HOLE << 60; /* not what was compressed, once units are let go */
	fresh_enqueue(volume, fresh);
	return 0;
}

/* Nobody knows of the place before it has the bytes, so whoever comes meanwhile meets the block as it was. */
static int replace(struct vs_volume *volume, uint64_t block, const void *data, uint64_t length)
{
	struct fresh room = { .block = block };
	uint64_t in_a_row, entry;
	int error = -ENOBUFS;

	pthread_mutex_lock(&volume->lock);
	entry = map_look_up(volume, block, &in_a_row);
	if (entry_state(entry) != VS_COMPRESSED || !volume->allocation.sub_shift ||
	    length > volume_block_size(volume)) {
		error = -EAGAIN;
	} else if (fresh_place(volume, &room)) {
		pthread_mutex_unlock(&volume->lock);
		struct extent new = entry_extent(room.entry, 0, length);
		error = blocking_extent(volume, &new, IO_WRITE, (uint8_t *)(uintptr_t)data);
		pthread_mutex_lock(&volume->lock);
		if (!error && map_look_up(volume, block, &in_a_row) != entry)
			error = -EAGAIN;
		if (!error)
			error = become_whole(volume, block, entry, room.entry);
		if (error)
			window_give_back(volume, &room);
	}
	pthread_mutex_unlock(&volume->lock);
	return error;
}

int vs_volume_replace(vs_volume *volume, uint64_t block, const void *data, uint64_t length)
{
	uint32_t entered = epoch_enter(volume);
	int error = atomic_load(&volume->quiesced) ? -EAGAIN : replace(volume, block, data, length);
	epoch_leave(volume, entered);
	return error;
}

/* ---- at commit ---- */

static bool unit_needs_fill(const struct vs_volume *volume, const struct fresh *fresh, uint32_t unit)
{
	return volume->allocation.keeps_masks ? fresh->held >> unit & 1 : !fresh_is_valid(fresh, unit);
}

bool fresh_needs_fill(const struct vs_volume *volume, const struct fresh *fresh)
{
	/* without masks a record that has let go of its place is all zeros, and there is nowhere to write them */
	return volume->allocation.keeps_masks ? fresh->held : fresh->entry && !fresh_all_valid(volume, fresh);
}

int fresh_fill(struct vs_volume *volume, struct fresh *fresh)
{
	uint32_t units = volume_units(volume), shift = volume->allocation.sub_shift;
	int error = 0;

	for (uint32_t unit = 0, next; unit < units && !error; unit = next) {
		next = unit + 1;
		if (!unit_needs_fill(volume, fresh, unit))
			continue;
		while (next < units && unit_needs_fill(volume, fresh, next))
			next++;
		error = copy_up(volume, fresh, (uint64_t)unit << shift, (uint64_t)(next - unit) << shift, 0, NULL, 0);
	}
	return error;
}
