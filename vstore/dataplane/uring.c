/*
 * uring.c - I/O that a loop must not wait for, handed to the kernel through the loop's io_uring. What it takes only in part
 * is handed over again, and what it has no room for now waits in the loop's backlog.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>

static void prepare(struct io_uring_sqe *sqe, struct io *io)
{
	int fd = io_layer(io)->fd, keep = FALLOC_FL_KEEP_SIZE;
	uint32_t count = 0;
	struct iovec *iov = io_iovs(io, &count);

	switch (io->operation) {
	case IO_READ: io_uring_prep_readv(sqe, fd, iov, count, io->offset); break;
	case IO_WRITE: io_uring_prep_writev2(sqe, fd, iov, count, io->offset, io->durable ? RWF_DSYNC : 0); break;
	case IO_FLUSH: io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC); break;
	default:
		io_uring_prep_fallocate(
			sqe, fd, keep | (io->operation == IO_PUNCH ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE),
			(off_t)io->offset, (off_t)io->length);
	}
	io_uring_sqe_set_data(sqe, io);
}

void io_queue(struct loop *loop, struct io *io)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&loop->uring);

	if (!sqe) {
		io_submit(loop);
		sqe = io_uring_get_sqe(&loop->uring);
	}
	loop->uring_in_flight++;
	if (!sqe) { /* the kernel takes no more now: io_reap() tries again */
		io->next = NULL;
		*loop->backlog_tail = io;
		loop->backlog_tail = &io->next;
		return;
	}
	prepare(sqe, io);
	loop->uring_queued++;
}

void io_submit(struct loop *loop)
{
	if (!loop->uring_queued)
		return;
	int sent = io_uring_submit(&loop->uring);
	if (sent > 0)
		loop->uring_queued -= (uint32_t)sent < loop->uring_queued ? (uint32_t)sent : loop->uring_queued;
}

static void resume_backlog(struct loop *loop)
{
	while (loop->backlog) {
		struct io_uring_sqe *sqe = io_uring_get_sqe(&loop->uring);
		struct io *io = loop->backlog;

		if (!sqe)
			return;
		loop->backlog = io->next;
		if (!loop->backlog)
			loop->backlog_tail = &loop->backlog;
		prepare(sqe, io);
		loop->uring_queued++;
	}
}

/* A read that met the end of the file: the rest is zeros. */
static int zero_rest(struct io *io)
{
	uint32_t count;
	struct iovec *iov = io_iovs(io, &count);
	struct cursor rest = { iov, io->bounce ? 1 : io->left ? io->left_count : io->data_count, 0 };

	return cursor_guarded(cursor_fill_zero, &rest, NULL, io->length);
}

static void complete(struct loop *loop, struct io *io, int result)
{
	bool moves = io->operation == IO_READ || io->operation == IO_WRITE;

	if (result == -EAGAIN || result == -EINTR) {
		io_queue(loop, io);
		return;
	}
	if (result < 0 || !moves) {
		if (!result && io->operation != IO_FLUSH)
			layer_forget_resident(io_layer(io), io->offset, io->length);
		io_done(io, result);
		return;
	}
	if (io->operation == IO_WRITE || result)
		layer_note_resident(io_layer(io), io->offset, (uint64_t)result);
	if ((uint64_t)result >= io->length) {
		io_done(io, 0);
	} else if (!result) {
		io_done(io, io->operation == IO_READ ? zero_rest(io) : -ENOSPC);
	} else {
		int error = io_progress(io, (uint64_t)result);
		if (error)
			io_done(io, error);
		else
			io_queue(loop, io);
	}
}

unsigned io_reap(struct loop *loop)
{
	struct io_uring_cqe *cqes[64];
	unsigned count = io_uring_peek_batch_cqe(&loop->uring, cqes, 64);

	for (unsigned i = 0; i < count; i++) {
		struct io *io = io_uring_cqe_get_data(cqes[i]);
		int result = cqes[i]->res;

		io_uring_cqe_seen(&loop->uring, cqes[i]);
		loop->uring_in_flight--;
		complete(loop, io, result);
	}
	resume_backlog(loop);
	io_submit(loop);
	return count;
}

int io_open(struct loop *loop)
{
	struct io_uring_params parameters = { .flags = IORING_SETUP_CQSIZE, .cq_entries = 8 * RING_ENTRIES };
	int error = io_uring_queue_init_params(RING_ENTRIES, &loop->uring, &parameters);

	loop->backlog_tail = &loop->backlog;
	loop->has_uring = !error;
	return error;
}

void io_close(struct loop *loop)
{
	if (loop->has_uring)
		io_uring_queue_exit(&loop->uring);
	loop->has_uring = false;
}
