/*
 * blocking.c - the volume's plain calls, for Python's slow path and for jobs: any offset, any length, done on return.
 * The same map and the same cuts as the fast path, and the same answer; only the waiting differs.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ZEROES = 1 << 20 };
static uint8_t zeroes[ZEROES]; /* never written to: move_direct() and pwritev() only read it */

void iovs_advance(struct iovec **iov, uint32_t *count, uint64_t length)
{
	while (*count && length >= (*iov)->iov_len) {
		length -= (*iov)->iov_len;
		(*iov)++;
		(*count)--;
	}
	if (length) {
		(*iov)->iov_base = (uint8_t *)(*iov)->iov_base + length;
		(*iov)->iov_len -= length;
	}
}

int blocking_move(const struct layer *layer, uint32_t operation, struct iovec *iov, uint32_t count, uint64_t offset,
		  bool durable)
{
	while (count) {
		int some = count > IOV_MAX ? IOV_MAX : (int)count;
		ssize_t moved = operation == IO_READ
					? preadv(layer->fd, iov, some, (off_t)offset)
					: pwritev2(layer->fd, iov, some, (off_t)offset, durable ? RWF_DSYNC : 0);
		if (moved < 0 && errno == EINTR)
			continue;
		if (moved < 0)
			return -errno;
		if (!moved && operation == IO_WRITE)
			return -ENOSPC;
		if (!moved) {
			struct cursor rest = { iov, count, 0 };
			return cursor_guarded(cursor_fill_zero, &rest, NULL, UINT64_MAX);
		}
		iovs_advance(&iov, &count, (uint64_t)moved);
		offset += (uint64_t)moved;
	}
	return 0;
}

int blocking_clear(struct layer *layer, uint32_t operation, uint64_t offset, uint64_t length)
{
	int mode = FALLOC_FL_KEEP_SIZE | (operation == IO_PUNCH ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);

	layer_forget_resident(layer, offset, length);
	if (!fallocate(layer->fd, mode, (off_t)offset, (off_t)length)) {
		layer_forget_resident(layer, offset, length);
		return 0;
	}
	/* EINVAL: a block device wants whole sectors of its own size */
	return errno == EINVAL || errno == ENOSYS ? -EOPNOTSUPP : -errno;
}

/* O_DIRECT takes whole aligned units only: read, change, write back what the ends cover in part. */
static int move_direct(const struct layer *layer, uint32_t operation, uint8_t *buffer, uint64_t offset, uint64_t length)
{
	uint64_t mask = layer->alignment - 1, start = offset & ~mask, end = (offset + length + mask) & ~mask;
	void *bounce;
	int error = 0;

	if (posix_memalign(&bounce, layer->alignment < 4096 ? 4096 : layer->alignment, end - start))
		return -ENOMEM;
	struct iovec iov = { bounce, end - start };
	if (operation == IO_READ || start != offset || end != offset + length) {
		error = blocking_move(layer, IO_READ, &iov, 1, start, false);
		iov = (struct iovec){ bounce, end - start };
	}
	uint8_t *at = (uint8_t *)bounce + (offset - start);
	if (!error && operation == IO_READ)
		memcpy(buffer, at, length);
	if (!error && operation == IO_WRITE) {
		memcpy(at, buffer, length);
		error = blocking_move(layer, IO_WRITE, &iov, 1, start, false);
	}
	free(bounce);
	return error;
}

static int move_extent(struct layer *layer, uint32_t operation, uint8_t *buffer, uint64_t offset, uint64_t length)
{
	struct iovec iov = { buffer, length };

	if (layer->flags & VS_FILE_NULL) {
		if (operation == IO_READ)
			memset(buffer, 0, length);
		return 0;
	}
	if (layer->flags & VS_FILE_DIRECT)
		return move_direct(layer, operation, buffer, offset, length);
	return blocking_move(layer, operation, &iov, 1, offset, false);
}

int blocking_extent(struct vs_volume *volume, const struct extent *extent, uint32_t operation, uint8_t *buffer)
{
	struct layer *layer = volume->layers[extent->layer];

	if (operation == IO_WRITE && layer->flags & VS_FILE_READ_ONLY)
		return -EROFS;
	return move_extent(layer, operation, buffer, extent->offset, extent->length);
}

static bool within(vs_volume *volume, uint64_t offset, uint64_t length)
{
	uint64_t end;

	return !__builtin_add_overflow(offset, length, &end) && end <= atomic_load(&volume->length);
}

static int read_packed(vs_volume *volume, const struct extent *extent, uint64_t within, uint8_t *to)
{
	struct packed *block = packed_hold(volume, extent, true);

	if (!block)
		return -ENODATA;
	memcpy(to, packed_bytes(block) + within, extent->length);
	packed_release(block);
	return 0;
}

static int read_range(vs_volume *volume, uint64_t offset, uint8_t *to, uint64_t length, bool composed)
{
	while (length) {
		struct extent extent = volume_extent(volume, offset, length);
		int error = 0;

		if (reads_zero(&extent))
			memset(to, 0, extent.length);
		else if (extent.state == VS_DATA || extent.state == VS_SHARED)
			error = blocking_extent(volume, &extent, IO_READ, to);
		else if (extent.state != VS_COMPRESSED)
			error = -ENODATA;
		else if (!composed)
			error = read_packed(volume, &extent, offset & (volume_block_size(volume) - 1), to);
		if (error)
			return error;
		to += extent.length;
		offset += extent.length;
		length -= extent.length;
	}
	return 0;
}

int vs_volume_read(vs_volume *volume, uint64_t offset, void *buffer, uint64_t length)
{
	if (!within(volume, offset, length))
		return -EINVAL;
	uint32_t entered = epoch_enter_to_read(volume, offset, length);
	int error = read_range(volume, offset, buffer, length, false);
	epoch_leave(volume, entered);
	return error;
}

int vs_volume_read_over(vs_volume *volume, uint64_t offset, void *buffer, uint64_t length)
{
	if (!within(volume, offset, length))
		return -EINVAL;
	uint32_t entered = epoch_enter_to_read(volume, offset, length);
	int error = read_range(volume, offset, buffer, length, true);
	epoch_leave(volume, entered);
	return error;
}

static int write_extent(vs_volume *volume, uint64_t offset, uint8_t *from, struct extent *extent)
{
	uint64_t left = (1ull << volume->shift) - (offset & ((1ull << volume->shift) - 1));

	if (extent->state == VS_DATA)
		return blocking_extent(volume, extent, IO_WRITE, from);
	if (!allocates_over(volume, extent))
		return -ENODATA;
	if (extent->length > left)
		extent->length = left;
	return allocate_write(volume, offset, from, extent->length);
}

static int write_range(vs_volume *volume, uint64_t offset, const void *buffer, uint64_t length)
{
	for (uint8_t *from = (uint8_t *)(uintptr_t)buffer; length;) {
		struct extent extent = volume_extent(volume, offset, length);
		int error = write_extent(volume, offset, from, &extent);

		if (error == -EAGAIN) /* another write or a commit was quicker: look at the map again */
			continue;
		if (error)
			return error;
		from += extent.length;
		offset += extent.length;
		length -= extent.length;
	}
	return 0;
}

int vs_volume_write(vs_volume *volume, uint64_t offset, const void *buffer, uint64_t length)
{
	if (!within(volume, offset, length))
		return -EINVAL;
	uint32_t entered = epoch_enter_to_write(volume, offset, length);
	volume_note(volume, offset, length);
	int error = write_range(volume, offset, buffer, length);
	epoch_leave(volume, entered);
	return error;
}

static int write_zeroes(struct layer *layer, uint64_t offset, uint64_t length)
{
	while (length) {
		uint64_t take = length < ZEROES ? length : ZEROES;
		int error = move_extent(layer, IO_WRITE, zeroes, offset, take);

		if (error)
			return error;
		offset += take;
		length -= take;
	}
	return 0;
}

static int clear_extent(struct layer *layer, uint64_t offset, uint64_t length, bool deallocate)
{
	int error;

	if (layer->flags & VS_FILE_NULL)
		return 0;
	if (layer->flags & VS_FILE_READ_ONLY)
		return -EROFS;
	error = blocking_clear(layer, deallocate ? IO_PUNCH : IO_ZERO, offset, length);
	return error == -EOPNOTSUPP ? write_zeroes(layer, offset, length) : error;
}

/* Zeros where the map cannot say them: in place where that is ours, else written. */
static int zero_bytes(vs_volume *volume, uint64_t offset, struct extent *extent, bool deallocate)
{
	if (extent->state == VS_DATA)
		return clear_extent(volume->layers[extent->layer], extent->offset, extent->length, deallocate);
	if (reads_zero(extent))
		return 0;
	if (extent->length > ZEROES)
		extent->length = ZEROES;
	return write_extent(volume, offset, zeroes, extent);
}

static int zero_range(vs_volume *volume, uint64_t offset, uint64_t length, int deallocate)
{
	while (length) {
		bool by_map = volume_zeroes_by_map(volume);
		int64_t done = by_map ? allocate_zero(volume, offset, length, true) : 0;

		if (!done) {
			struct extent extent = volume_extent(volume, offset, length);
			if (by_map)
				zero_cut(volume, offset, &extent);
			int error = zero_bytes(volume, offset, &extent, deallocate);
			if (error == -EAGAIN) /* another write or a commit was quicker */
				continue;
			done = error ? error : (int64_t)extent.length;
		}
		if (done < 0)
			return (int)done;
		offset += (uint64_t)done;
		length -= (uint64_t)done;
	}
	return 0;
}

int vs_volume_zero(vs_volume *volume, uint64_t offset, uint64_t length, int deallocate)
{
	if (!within(volume, offset, length))
		return -EINVAL;
	uint32_t entered = epoch_enter_to_write(volume, offset, length);
	volume_note(volume, offset, length);
	int error = zero_range(volume, offset, length, deallocate);
	epoch_leave(volume, entered);
	return error;
}

int vs_volume_lost(vs_volume *volume, uint32_t layer, int error)
{
	int none = 0;

	if (layer > LAYER_MASK || !volume->layers[layer] || error < 0)
		return -EINVAL;
	if (error)
		atomic_compare_exchange_strong(&volume->layers[layer]->lost, &none, -error);
	return -atomic_load(&volume->layers[layer]->lost);
}

int vs_volume_flush(vs_volume *volume)
{
	for (unsigned i = 0; i < sizeof(volume->layers) / sizeof(volume->layers[0]); i++) {
		struct layer *layer = volume->layers[i];

		if (!layer || layer->flags & (VS_FILE_READ_ONLY | VS_FILE_NULL | VS_FILE_MEMORY))
			continue;
		int error = layer_synced(layer, fdatasync(layer->fd) ? -errno : 0);
		if (error)
			return error;
	}
	return 0;
}
