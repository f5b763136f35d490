/*
 * slow.c - the way to Python and back: notices on a list with an eventfd, data by copy, answers in batches.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

enum { FIRST_REQUEST_RING = 2 };

void device_notice(struct vring *ring, uint32_t kind)
{
	struct vs_device *device = ring->device;

	pthread_mutex_lock(&device->notice_lock);
	ring->notices |= 1u << kind;
	device->notice_rings[ring->index / 64] |= 1ull << (ring->index % 64);
	pthread_mutex_unlock(&device->notice_lock);
	poke(device->notice_fd);
}

int vs_device_notice_fd(vs_device *device)
{
	return device->notice_fd;
}

static void describe(const struct vs_request *request, vs_notice *notice)
{
	*notice = (vs_notice){ .kind = VS_NOTICE_REQUEST,
			       .vring = request->ring->index,
			       .request = (struct vs_request *)(uintptr_t)request,
			       .data_out = request->out_length,
			       .data_in = request->in_length,
			       .header_length = request->header_length,
			       .response_room = request->response_room };
	memcpy(notice->header, request->header, request->header_length);
}

/* One notice of a ring: the lowest kind that is set. */
static void describe_ring(struct vring *ring, vs_notice *notice)
{
	uint32_t kind = (uint32_t)__builtin_ctz(ring->notices);

	*notice = (vs_notice){ .kind = kind, .vring = ring->index };
	ring->notices &= ~(1u << kind);
}

int vs_device_take(vs_device *device, vs_notice *notices, uint32_t room)
{
	uint32_t count = 0;
	uint64_t value;

	pthread_mutex_lock(&device->notice_lock);
	while (count < room && device->notices) {
		struct vs_request *request = device->notices;

		device->notices = request->next;
		if (!device->notices)
			device->notices_tail = &device->notices;
		describe(request, &notices[count++]);
	}
	for (uint32_t i = 0; i < device->settings.vrings && count < room; i++) {
		while (device->rings[i].notices && count < room)
			describe_ring(&device->rings[i], &notices[count++]);
		if (!device->rings[i].notices)
			device->notice_rings[i / 64] &= ~(1ull << (i % 64));
	}
	/* the descriptor stays readable while there is more */
	if (!device->notices && !device->notice_rings[0] && !device->notice_rings[1] &&
	    read(device->notice_fd, &value, sizeof(value)) < 0)
		value = 0;
	pthread_mutex_unlock(&device->notice_lock);
	return (int)count;
}

static int move_data(cursor_move *move, const struct iovec *iov, uint32_t count, uint64_t offset, void *buffer,
		     uint64_t length)
{
	struct cursor cursor = { iov, count, 0 };

	cursor_skip(&cursor, offset);
	return cursor_guarded(move, &cursor, buffer, length);
}

int vs_request_read(vs_request *request, uint64_t offset, void *buffer, uint64_t length)
{
	if (offset > request->out_length || length > request->out_length - offset)
		return -EINVAL;
	return move_data(cursor_copy_out, &request->iov[request->out_first], request->out_count, offset, buffer,
			 length);
}

int vs_request_write(vs_request *request, uint64_t offset, const void *buffer, uint64_t length)
{
	if (offset > request->in_length || length > request->in_length - offset)
		return -EINVAL;
	return move_data(cursor_copy_in, &request->iov[request->in_first], request->in_count, offset,
			 (void *)(uintptr_t)buffer, length);
}

/* What a command that ended with GOOD has moved: virtio 1.2 5.6.6.1.1, residual at byte 4, status 10, response 11. */
static void count_bytes(const vs_completion *completion)
{
	const uint8_t *response = completion->response;
	struct vring *ring = completion->request->ring;
	uint64_t moved = completion->request->out_length, residual = 0;

	if (ring->index < FIRST_REQUEST_RING || completion->response_length < 12 || response[10] || response[11])
		return;
	for (unsigned i = 4; i--;)
		residual = residual << 8 | response[4 + i];
	ring->counters.bytes_read += completion->data_in_length;
	ring->counters.bytes_written += moved > residual ? moved - residual : 0;
}

static unsigned finish_one(void *argument)
{
	const vs_completion *completion = argument;

	count_bytes(completion);
	request_finish(completion->request, completion->response, completion->response_length,
		       completion->data_in_length);
	return 0;
}

static unsigned publish_all(void *argument)
{
	struct loop *loop = argument;

	for (uint32_t i = 0; i < loop->ring_count; i++) {
		loop->serving_ring = loop->rings[i];
		if (loop->rings[i]->used && !loop->rings[i]->broken)
			vring_publish(loop->rings[i]);
	}
	return 0;
}

static void let_go(struct loop *loop)
{
	if (!loop)
		return;
	loop_guarded(loop, publish_all, loop);
	loop_unlock(loop);
}

static bool fits(const vs_completion *completion)
{
	const struct vs_request *request = completion->request;

	return completion->response_length <= request->response_room &&
	       completion->data_in_length <= request->in_length;
}

int vs_complete(vs_device *device, const vs_completion *completions, uint32_t count)
{
	struct loop *held = NULL;
	int error = 0;

	(void)device;
	/* one lock at a time: a busy loop of other rings is not asked to stop for these */
	for (uint32_t i = 0; i < count; i++) {
		struct loop *loop = completions[i].request->ring->loop;

		if (!fits(&completions[i])) {
			error = -EINVAL;
			continue;
		}
		if (loop != held) {
			let_go(held);
			loop_lock(loop);
			held = loop;
		}
		loop_guarded(loop, finish_one, (void *)(uintptr_t)&completions[i]);
	}
	let_go(held);
	return error;
}
