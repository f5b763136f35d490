/*
 * request.c - a descriptor chain as a virtio-scsi request (virtio 1.2, 5.6.6), from its first byte to the used ring.
 *
 *   iov[]:  | header | data-out ... | response | data-in ... |      wherever the driver put its descriptor borders
 */
#define _GNU_SOURCE
#include "internal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct vs_request *request_new(struct loop *loop)
{
	struct vs_request *request = loop->free_requests;

	if (request) {
		loop->free_requests = request->next;
	} else {
		request = calloc(1, sizeof(*request));
		if (!request)
			return NULL;
		request->iov = request->inline_iov;
		request->iov_room = INLINE_IOVS;
	}
	request->iov_count = request->out_count = 0;
	request->lun = NULL;
	request->error = 0;
	request->barrier = 0;
	request->slow = request->counted = request->io_busy = false;
	return request;
}

void request_destroy(struct vs_request *request)
{
	if (request->iov != request->inline_iov)
		free(request->iov);
	free(request);
}

void request_free(struct vs_request *request)
{
	struct loop *loop = request->ring->loop;

	if (request->iov != request->inline_iov) {
		free(request->iov);
		request->iov = request->inline_iov;
		request->iov_room = INLINE_IOVS;
	}
	request->next = loop->free_requests;
	loop->free_requests = request;
}

int request_grow(struct vs_request *request)
{
	uint32_t room = request->iov_room * 4;
	struct iovec *iov;

	if (room > MAX_IOVS)
		return -EPROTO;
	iov = malloc(room * sizeof(*iov));
	if (!iov)
		return -ENOMEM;
	memcpy(iov, request->iov, request->iov_count * sizeof(*iov));
	if (request->iov != request->inline_iov)
		free(request->iov);
	request->iov = iov;
	request->iov_room = room;
	return 0;
}

static uint64_t iov_bytes(const struct iovec *iov, uint32_t count)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < count; i++)
		sum += iov[i].iov_len;
	return sum;
}

/* Makes a boundary `bytes` after iov[first]; returns the index where the second part begins, or -errno. */
static int split_iovs(struct vs_request *request, uint32_t first, uint64_t bytes)
{
	uint32_t at = first;

	for (; at < request->iov_count && bytes >= request->iov[at].iov_len; at++)
		bytes -= request->iov[at].iov_len;
	if (!bytes)
		return (int)at;
	int error = request->iov_count == request->iov_room ? request_grow(request) : 0;
	if (error)
		return error;
	struct iovec *iov = &request->iov[at];
	memmove(iov + 1, iov, (request->iov_count - at) * sizeof(*iov));
	request->iov_count++;
	iov[0].iov_len = bytes;
	iov[1].iov_base = (uint8_t *)iov[1].iov_base + bytes;
	iov[1].iov_len -= bytes;
	return (int)at + 1;
}

/* Cuts the chain into its four parts and copies the header, once. 0, -EPROTO, -ENOMEM. */
int request_parse(struct vs_request *request, bool command)
{
	uint64_t out = iov_bytes(request->iov, request->out_count);
	uint64_t in = iov_bytes(request->iov + request->out_count, request->iov_count - request->out_count);
	uint32_t readable = request->out_count, total = request->iov_count;
	uint64_t header = command ? COMMAND_HEADER : out < VS_HEADER_BYTES ? out : VS_HEADER_BYTES;
	uint64_t response = in < VS_RESPONSE_BYTES ? in : VS_RESPONSE_BYTES;
	struct cursor cursor = { request->iov, readable, 0 };

	if (out < header || !out || !in || (command && in < VS_RESPONSE_BYTES))
		return -EPROTO;
	cursor_copy_out(&cursor, request->header, header);
	request->header_length = (uint32_t)header;
	request->response_room = (uint32_t)response;
	request->out_length = out - header;
	request->in_length = in - response;
	int at = split_iovs(request, 0, header);
	if (at < 0)
		return at;
	request->out_first = (uint32_t)at;
	readable += request->iov_count - total;
	request->out_count = readable - request->out_first;
	request->response_first = readable;
	at = split_iovs(request, readable, response);
	if (at < 0)
		return at;
	request->response_count = (uint32_t)at - readable;
	request->in_first = (uint32_t)at;
	request->in_count = request->iov_count - request->in_first;
	return 0;
}

/* ---- answers ---------------------------------------------------------------------------------- */

static void log_written(const struct vs_request *request, uint64_t response, uint64_t data)
{
	const struct guest_memory *memory = &request->ring->device->memory;
	const struct iovec *iov = &request->iov[request->response_first];

	for (uint64_t left = response; left; iov++) {
		uint64_t take = iov->iov_len < left ? iov->iov_len : left;
		guest_memory_log_host(memory, iov->iov_base, take);
		left -= take;
	}
	iov = &request->iov[request->in_first];
	for (uint64_t left = data; left; iov++) {
		uint64_t take = iov->iov_len < left ? iov->iov_len : left;
		guest_memory_log_host(memory, iov->iov_base, take);
		left -= take;
	}
}

/* The chain goes back to the driver; the used index is published by the caller. */
void request_finish(struct vs_request *request, const void *response, uint32_t length, uint64_t data_in)
{
	struct vring *ring = request->ring;
	struct cursor to = { &request->iov[request->response_first], request->response_count, 0 };

	if (!ring->broken && ring->used) {
		ring->loop->serving_ring = ring;
		ring->loop->serving = request;
		cursor_copy_in(&to, (void *)(uintptr_t)response, length);
		if (UNLIKELY(ring->device->logging))
			log_written(request, length, data_in);
		vring_push(ring, request->head, length + (uint32_t)data_in);
		ring->loop->serving = NULL;
		ring->counters.completed++;
	}
	request_dropped(request);
}

/* Its LUN may have gone meanwhile, and another one have come that counts barriers of its own. */
static void request_lift_barrier(const struct vs_request *request)
{
	struct lun *lun = device_lun(request->ring->device, request->header);

	if (lun && lun->number == request->barrier)
		atomic_fetch_sub(&lun->barriers, 1);
}

/* The request is over, answered or not. */
void request_dropped(struct vs_request *request)
{
	struct vring *ring = request->ring;
	if (UNLIKELY(request->barrier))
		request_lift_barrier(request);
	bool last = request->counted && !--ring->in_flight;

	request_free(request);
	if (last && ring->wants_idle) {
		ring->wants_idle = false;
		device_notice(ring, VS_NOTICE_IDLE);
	}
}

void request_to_python(struct vs_request *request)
{
	struct vs_device *device = request->ring->device;

	request->slow = true;
	request->ring->loop->serving = NULL;
	request->ring->counters.slow++;
	request->next = NULL;
	pthread_mutex_lock(&device->notice_lock);
	bool first = !device->notices; /* of the others the descriptor tells already */
	*device->notices_tail = request;
	device->notices_tail = &request->next;
	pthread_mutex_unlock(&device->notice_lock);
	if (first)
		poke(device->notice_fd);
}

/* ---- in flight --------------------------------------------------------------------------------- */

void request_link(struct vs_request *request)
{
	struct loop *loop = request->ring->loop;

	loop->serving = NULL;
	request->newer = NULL;
	request->older = loop->newest;
	if (loop->newest)
		loop->newest->newer = request;
	loop->newest = request;
	atomic_fetch_add_explicit(&request->lun->in_flight, 1, memory_order_relaxed);
}

void request_unlink(struct vs_request *request)
{
	if (request->newer)
		request->newer->older = request->older;
	else
		request->ring->loop->newest = request->older;
	if (request->older)
		request->older->newer = request->newer;
	atomic_fetch_sub_explicit(&request->lun->in_flight, 1, memory_order_relaxed);
}
