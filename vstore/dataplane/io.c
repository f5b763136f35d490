/*
 * io.c - moves the bytes of one segment between guest memory and one file, by the cheapest way that will not block:
 *
 *   null            nothing                          resident page   memcpy from the mapping (layer.c)
 *   tmpfs           a plain call: it cannot block    buffered file   preadv2(RWF_NOWAIT), io_uring on EAGAIN;
 *                                                                    ext4: a plain write, unless they are slow now
 *   O_DIRECT, block device: io_uring                 no io_uring here: a plain call that may block this loop
 *
 * The kernel fills the guest's own pages; only an O_DIRECT buffer that the device cannot take is bounced.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { FAULT_CHECK_EVERY = 61, SLOW_NS = 2000000, WARY_WRITES = 4096 };

struct layer *io_layer(const struct io *io)
{
	return io->volume->layers[io->layer];
}

/* ---- copying from a mapping --------------------------------------------------------------------- */

/* Copies that had to wait for a disk show as major faults of this thread: then no bit can be trusted any more. Few may pass
 * before it is asked, as each keeps the whole loop waiting, and one window of pages has hundreds of bits. */
static void watch_faults(struct loop *loop, struct layer *layer)
{
	struct rusage usage;

	if (++loop->hot_copies % FAULT_CHECK_EVERY || getrusage(RUSAGE_THREAD, &usage))
		return;
	if (usage.ru_majflt != loop->major_faults)
		layer_forget_resident(layer, 0, INT64_MAX);
	loop->major_faults = usage.ru_majflt;
}

/* Between the guest's buffers and the file's bytes in memory. -EFAULT: one of the two is not there (any more). */
static int copy_mapped(const struct io *io, uint8_t *bytes)
{
	struct cursor guest = { io->data, io->data_count, 0 };

	return cursor_guarded(io->operation == IO_READ ? cursor_copy_in : cursor_copy_out, &guest, bytes, io->length);
}

static bool move_resident(struct loop *loop, struct layer *layer, const struct io *io)
{
	bool in_memory = io->operation == IO_READ || layer->flags & VS_FILE_INSTANT;
	uint8_t *bytes = in_memory ? layer_resident(layer, io->offset, io->length, io->operation == IO_WRITE) : NULL;

	if (!bytes)
		return false;
	if (copy_mapped(io, bytes)) {
		layer_forget_resident(layer, io->offset, io->length);
		return false; /* the file was cut short, or the guest's memory: the call below tells */
	}
	watch_faults(loop, layer);
	return true;
}

static int start_memory(struct layer *layer, struct io *io)
{
	if (io->operation == IO_READ || io->operation == IO_WRITE) {
		uint8_t *bytes = layer_resident(layer, io->offset, io->length, io->operation == IO_WRITE);
		return bytes ? copy_mapped(io, bytes) : -EIO;
	}
	return io->operation == IO_FLUSH ? 0 : blocking_clear(layer, IO_PUNCH, io->offset, io->length);
}

/* ---- what is left of an I/O ------------------------------------------------------------------------ */

struct iovec *io_iovs(struct io *io, uint32_t *count)
{
	if (io->bounce) {
		*count = 1;
		return &io->bounce_left;
	}
	*count = io->left ? io->left_count : io->data_count;
	if (*count > IOV_MAX)
		*count = IOV_MAX; /* a short transfer; the rest follows */
	return io->left ? io->left : (struct iovec *)(uintptr_t)io->data;
}

int io_progress(struct io *io, uint64_t length)
{
	io->offset += length;
	io->length -= length;
	if (io->bounce) {
		io->bounce_left.iov_base = (uint8_t *)io->bounce_left.iov_base + length;
		io->bounce_left.iov_len -= length;
		return 0;
	}
	if (!io->left) {
		struct iovec *copy = io->owned;

		if (!copy) {
			copy = malloc(io->data_count * sizeof(*copy));
			if (!copy)
				return -ENOMEM;
			memcpy(copy, io->data, io->data_count * sizeof(*copy));
		}
		io->owned = io->left = copy;
		io->left_count = io->data_count;
	}
	iovs_advance(&io->left, &io->left_count, length);
	return 0;
}

static bool unfit_for_device(const struct layer *layer, const struct io *io)
{
	for (uint32_t i = 0; i < io->data_count; i++)
		if (((uintptr_t)io->data[i].iov_base | io->data[i].iov_len) & (layer->alignment - 1))
			return true;
	return false;
}

static int make_bounce(const struct layer *layer, struct io *io)
{
	struct cursor guest = { io->data, io->data_count, 0 };

	if (posix_memalign(&io->bounce, layer->alignment < 4096 ? 4096 : layer->alignment, io->length)) {
		io->bounce = NULL;
		return -ENOMEM;
	}
	io->bounce_length = io->length;
	io->bounce_left = (struct iovec){ io->bounce, io->length };
	return io->operation == IO_WRITE ? cursor_guarded(cursor_copy_out, &guest, io->bounce, io->length) : 0;
}

int io_end(struct io *io, int result)
{
	/* EIO of a durable write may be what a flush would have told; other errors are the write's own */
	if (io->operation == IO_FLUSH || (io->durable && (!result || result == -EIO)))
		result = layer_synced(io_layer(io), result);
	if (LIKELY(!io->bounce && !io->owned))
		return result;
	if (io->bounce && io->operation == IO_READ && !result) {
		struct cursor guest = { io->data, io->data_count, 0 };
		result = cursor_guarded(cursor_copy_in, &guest, io->bounce, io->bounce_length);
	}
	free(io->bounce);
	free(io->owned);
	io->bounce = NULL;
	io->owned = NULL;
	return result;
}

void io_done(struct io *io, int result)
{
	struct vs_request *request = io->request;

	result = io_end(io, result);
	if (io->claim)
		allocate_done(io->volume, io->claim, io->claim_offset, io->claim_length, !result);
	if (io->counted)
		epoch_leave(io->volume, io->entered);
	if (result && !request->error)
		request->error = result;
	if (io != &request->io)
		free(io);
	if (!--request->pending)
		scsi_request_done(request);
}

/* ---- starting ------------------------------------------------------------------------------------------- */

/* In most requests the guest's data lies in a row; then the kernel needs no list. */
static ssize_t move_plainly(int fd, const struct io *io)
{
	const struct iovec *iov = io->data;
	bool read = io->operation == IO_READ;

	if (LIKELY(io->data_count == 1))
		return read ? pread(fd, iov->iov_base, iov->iov_len, (off_t)io->offset)
			    : pwrite(fd, iov->iov_base, iov->iov_len, (off_t)io->offset);
	return read ? preadv(fd, iov, (int)io->data_count, (off_t)io->offset)
		    : pwritev(fd, iov, (int)io->data_count, (off_t)io->offset);
}

/* What a plain call moved is in memory; next time it may be copied. Pages that were just made are not mapped here, and the
 * fault would cost more than another call; nor is a file that grows looked through for what else it has by now. */
static void note_moved(struct layer *layer, const struct io *io, uint64_t offset, uint64_t length)
{
	bool instant = layer->flags & VS_FILE_INSTANT, wrote = io->operation == IO_WRITE;

	if (instant && io->claim)
		return;
	if (!instant || wrote)
		layer_note_resident(layer, offset, length);
	if (instant && !(wrote && atomic_load_explicit(&layer->grows, memory_order_relaxed)))
		layer_note_found(layer, offset, length);
}

static int start_blocking(struct layer *layer, struct io *io)
{
	if (io->operation == IO_FLUSH)
		return fdatasync(layer->fd) ? -errno : 0;
	if (io->operation != IO_READ && io->operation != IO_WRITE)
		return blocking_clear(layer, io->operation, io->offset, io->length);
	uint64_t offset = io->offset, length = io->length;
	/* one call nearly always moves all of it, and then no list needs to be copied */
	if (!(layer->flags & VS_FILE_DIRECT) && !io->durable && io->data_count <= IOV_MAX) {
		ssize_t moved = move_plainly(layer->fd, io);
		if (LIKELY(moved == (ssize_t)length)) {
			note_moved(layer, io, offset, length);
			return 0;
		}
	}
	int error = io_progress(io, 0);
	return error ? error : blocking_move(layer, io->operation, io->left, io->left_count, offset, io->durable);
}

/* How often this thread has waited for something. */
static long times_waited(void)
{
	struct rusage usage;

	return getrusage(RUSAGE_THREAD, &usage) ? 0 : usage.ru_nvcsw;
}

/* The kernel reads a page that is written in part, unless it is in memory. */
static bool reads_first(const struct layer *layer, const struct io *io)
{
	uint64_t mask = (1u << PAGE_BITS) - 1, end = io->offset + io->length;

	return (io->offset & mask && !layer_resident(layer, io->offset, 1, false)) ||
	       (end & mask && !layer_resident(layer, end - 1, 1, false));
}

/*
 * ext4 refuses RWF_NOWAIT for buffered writes, though nearly all of them only copy into the page cache, and io_uring hands
 * each of them to a thread, which costs more than the write. So the loop makes them itself while they are quick. One that
 * took long makes it wary, as other threads may have had the processor meanwhile; if one of those that follow took long
 * and did wait, then the disk is behind, and the kernel holds writers back. io_uring writes for many times as long, so
 * that waiting takes a small part of a loop's time.
 */
static int write_quickly(struct loop *loop, struct layer *layer, struct io *io)
{
	uint64_t began = now_ns();

	if (io->durable || !layer_is_quick(layer, began) || reads_first(layer, io))
		return -EAGAIN;
	long waited = loop->wary ? times_waited() : 0;
	int error = start_blocking(layer, io);
	uint64_t took = now_ns() - began;
	if (UNLIKELY(took > SLOW_NS)) {
		if (loop->wary && times_waited() != waited)
			layer_was_slow(layer, began + took, took);
		loop->wary = WARY_WRITES;
	} else if (UNLIKELY(loop->wary)) {
		loop->wary--;
	}
	return error;
}

/* Tries without waiting, or hardly. 0 done, -EAGAIN: io_uring shall do (the rest of) it, else the error. */
static int try_now(struct loop *loop, struct layer *layer, struct io *io)
{
	bool read = io->operation == IO_READ;
	uint32_t count;
	struct iovec *iov = io_iovs(io, &count);

	if (!read && (io->durable || atomic_load_explicit(&layer->no_nowait, memory_order_relaxed)))
		return write_quickly(loop, layer, io);
	ssize_t moved = read ? preadv2(layer->fd, iov, (int)count, (off_t)io->offset, RWF_NOWAIT)
			     : pwritev2(layer->fd, iov, (int)count, (off_t)io->offset, RWF_NOWAIT);
	if (moved < 0) {
		if (errno == EOPNOTSUPP && !read) /* tmpfs and ext4 refuse buffered writes that must not wait */
			atomic_store(&layer->no_nowait, true);
		return errno == EOPNOTSUPP || errno == EINTR ? -EAGAIN : -errno;
	}
	if (moved > 0)
		(read ? layer_note_found : layer_note_resident)(layer, io->offset, (uint64_t)moved);
	if ((uint64_t)moved == io->length)
		return 0;
	int error = moved ? io_progress(io, (uint64_t)moved) : 0;
	return error ? error : -EAGAIN;
}

int io_start(struct loop *loop, struct io *io)
{
	struct layer *layer = io_layer(io);
	bool moves = io->operation == IO_READ || io->operation == IO_WRITE;

	if (layer->flags & VS_FILE_READ_ONLY && io->operation != IO_READ && io->operation != IO_FLUSH)
		return -EROFS;
	if (layer->flags & VS_FILE_NULL)
		return 0;
	if (layer->flags & VS_FILE_READ_ONLY && io->operation != IO_READ)
		return io->operation == IO_FLUSH ? 0 : -EROFS;
	if (layer->flags & VS_FILE_MEMORY)
		return start_memory(layer, io);
	if (moves && move_resident(loop, layer, io))
		return 0;
	if (layer->flags & VS_FILE_INSTANT || !loop->has_uring)
		return start_blocking(layer, io);
	if (moves) {
		bool direct = layer->flags & VS_FILE_DIRECT;
		int error = !direct                       ? try_now(loop, layer, io)
			    : unfit_for_device(layer, io) ? make_bounce(layer, io)
							  : -EAGAIN;

		/* a bounced write or read still has to be made; everything else that is not EAGAIN is over */
		if (error != -EAGAIN && (error || !direct))
			return error;
	}
	io->entered = epoch_enter(io->volume);
	io->counted = true;
	io_queue(loop, io);
	return IO_STARTED;
}
