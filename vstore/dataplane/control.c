/*
 * control.c - vhost-user's SET_VRING_* and the event queue: one ring at a time, under the lock of the loop that serves it.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static struct vring *lock_ring(vs_device *device, uint32_t vring)
{
	if (vring >= device->settings.vrings)
		return NULL;
	loop_lock(device->rings[vring].loop);
	return &device->rings[vring];
}

static int unlock_ring(struct vring *ring, int result)
{
	loop_unlock(ring->loop);
	return result;
}

int vs_vring_set_size(vs_device *device, uint32_t vring, uint32_t size)
{
	struct vring *ring = lock_ring(device, vring);

	if (!ring)
		return -EINVAL;
	if (!size || size > VS_MAX_VRING_SIZE || (size & (size - 1)))
		return unlock_ring(ring, -EINVAL);
	if (ring->started)
		return unlock_ring(ring, -EBUSY);
	ring->size = size;
	return unlock_ring(ring, 0);
}

int vs_vring_set_base(vs_device *device, uint32_t vring, uint32_t base)
{
	struct vring *ring = lock_ring(device, vring);

	if (!ring)
		return -EINVAL;
	if (base > UINT16_MAX)
		return unlock_ring(ring, -EINVAL);
	if (ring->started)
		return unlock_ring(ring, -EBUSY);
	ring->next_avail = (uint16_t)base;
	return unlock_ring(ring, 0);
}

int vs_vring_set_addresses(vs_device *device, uint32_t vring, uint32_t flags, uint64_t desc, uint64_t used,
			   uint64_t avail, uint64_t log)
{
	struct vring *ring = lock_ring(device, vring);

	if (!ring)
		return -EINVAL;
	const struct vring old = *ring;
	ring->desc_user = desc;
	ring->used_user = used;
	ring->avail_user = avail;
	ring->log_guest = log;
	ring->log_used = flags & 1;
	ring->addressed = true;
	/* QEMU turns dirty logging on by sending the addresses again while the ring runs */
	int error = ring->started ? vring_start(ring) : 0;
	if (error) { /* nothing else: counters and indexes go on */
		ring->desc_user = old.desc_user;
		ring->used_user = old.used_user;
		ring->avail_user = old.avail_user;
		ring->log_guest = old.log_guest;
		ring->log_used = old.log_used;
		ring->addressed = old.addressed;
	}
	return unlock_ring(ring, error);
}

/* An eventfd has no file type of its own; whatever has one could block or fault us. So could an eventfd in blocking mode:
 * a kick that somebody else has read, or a counter that the front-end has filled, must not hold up the loop. */
static int duplicate_eventfd(int fd)
{
	struct stat status;

	if (fd < 0)
		return -1;
	if (fstat(fd, &status))
		return -errno - 1;
	if (status.st_mode & S_IFMT)
		return -EINVAL - 1;
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (copy < 0)
		return -errno - 1;
	fcntl(copy, F_SETFL, fcntl(copy, F_GETFL) | O_NONBLOCK);
	return copy;
}

int vs_vring_set_kick(vs_device *device, uint32_t vring, int fd)
{
	int copy = duplicate_eventfd(fd);
	struct vring *ring = copy < -1 ? NULL : lock_ring(device, vring);

	if (!ring) {
		if (copy >= 0)
			close(copy);
		return copy < -1 ? copy + 1 : -EINVAL;
	}
	int error = loop_watch(ring, copy);
	loop_wake(ring->loop);
	return unlock_ring(ring, error);
}

static int replace(vs_device *device, uint32_t vring, int fd, size_t member)
{
	int copy = duplicate_eventfd(fd);
	struct vring *ring = copy < -1 ? NULL : lock_ring(device, vring);

	if (!ring) {
		if (copy >= 0)
			close(copy);
		return copy < -1 ? copy + 1 : -EINVAL;
	}
	int *slot = (int *)(void *)((uint8_t *)ring + member);
	if (*slot >= 0)
		close(*slot);
	*slot = copy;
	return unlock_ring(ring, 0);
}

/*
 * QEMU sends the descriptor that reaches the guest only after the ring runs, and waits for no answer: an interrupt may
 * have gone to the one before it. Poking the new one makes the driver look; one interrupt too many does no harm.
 */
int vs_vring_set_call(vs_device *device, uint32_t vring, int fd)
{
	int error = replace(device, vring, fd, offsetof(struct vring, call));
	struct vring *ring = error ? NULL : lock_ring(device, vring);

	if (!ring)
		return error;
	if (ring->started && ring->call >= 0)
		poke(ring->call);
	return unlock_ring(ring, 0);
}

int vs_vring_set_error(vs_device *device, uint32_t vring, int fd)
{
	return replace(device, vring, fd, offsetof(struct vring, error));
}

static unsigned start(void *argument)
{
	struct vring *ring = argument;
	int error;

	ring->loop->serving_ring = ring;
	error = vring_start(ring);
	if (error)
		return (unsigned)-error;
	ring->started = true;
	ring->broken = ring->wants_idle = ring->notify_on = false;
	/* whoever served the ring before may have died between the used index and the interrupt for it */
	if (ring->inflight && ring->call >= 0)
		poke(ring->call);
	loop_refresh(ring->loop);
	return 0;
}

int vs_vring_start(vs_device *device, uint32_t vring)
{
	struct vring *ring = lock_ring(device, vring);

	if (!ring)
		return -EINVAL;
	/* a ring that broke stays broken until it was stopped */
	int error = ring->started ? 0 : -(int)loop_guarded(ring->loop, start, ring);
	loop_wake(ring->loop);
	return unlock_ring(ring, error);
}

int vs_vring_enable(vs_device *device, uint32_t vring, int enabled)
{
	struct vring *ring = lock_ring(device, vring);

	if (!ring)
		return -EINVAL;
	ring->enabled = enabled;
	loop_wake(ring->loop);
	return unlock_ring(ring, 0);
}

/* What was in flight already when the ring started has to be used before the front-end hears that all is. */
static unsigned fetch_the_rest(void *argument)
{
	struct vring *ring = argument;
	bool enabled = ring->enabled;

	ring->enabled = true;
	scsi_serve(ring, ring->again_left);
	ring->enabled = enabled;
	if (!ring->broken)
		vring_publish(ring);
	return 0;
}

int vs_vring_stop(vs_device *device, uint32_t vring)
{
	struct vring *ring = lock_ring(device, vring);

	if (!ring)
		return -EINVAL;
	if (ring->started && !ring->broken && ring->again_left)
		loop_guarded(ring->loop, fetch_the_rest, ring);
	ring->started = false;
	loop_refresh(ring->loop);
	if (ring->in_flight)
		ring->wants_idle = true;
	else
		device_notice(ring, VS_NOTICE_IDLE);
	return unlock_ring(ring, 0);
}

int vs_vring_base(vs_device *device, uint32_t vring)
{
	struct vring *ring = lock_ring(device, vring);

	return ring ? unlock_ring(ring, ring->next_avail) : -EINVAL;
}

int vs_vring_in_flight(vs_device *device, uint32_t vring)
{
	struct vring *ring = lock_ring(device, vring);

	return ring ? unlock_ring(ring, (int)ring->in_flight) : -EINVAL;
}

int vs_vring_break(vs_device *device, uint32_t vring)
{
	struct vring *ring = lock_ring(device, vring);

	if (!ring)
		return -EINVAL;
	vring_break(ring);
	return unlock_ring(ring, 0);
}

int vs_vring_count(vs_device *device, uint32_t vring, vs_vring_counters *counters)
{
	struct vring *ring = lock_ring(device, vring);

	if (!ring)
		return -EINVAL;
	*counters = ring->counters;
	counters->started = ring->started;
	counters->enabled = ring->enabled;
	counters->broken = ring->broken;
	counters->in_flight = ring->in_flight;
	return unlock_ring(ring, 0);
}

struct event_job {
	struct vring *ring;
	const void *event;
	uint32_t length;
	int result;
};

/* virtio 1.2 5.6.6.3: the driver keeps writable buffers there; one is taken only when there is an event for it. */
static unsigned send_event(void *argument)
{
	struct event_job *job = argument;
	struct vring *ring = job->ring;
	struct vs_request *request = request_new(ring->loop);

	if (!request) {
		job->result = -ENOMEM;
		return 0;
	}
	request->ring = ring;
	ring->loop->serving_ring = ring;
	ring->loop->serving = request;
	int got = vring_fetch(ring, request);
	uint64_t room = 0;
	for (uint32_t i = 0; got == 1 && i < request->iov_count; i++)
		room += request->iov[i].iov_len;
	job->result = got;
	if (got == 1 && (request->out_count || room < job->length))
		job->result = -EPROTO;
	if (job->result == 1) {
		request->response_first = request->in_first = 0;
		request->response_count = request->iov_count;
		request_finish(request, job->event, job->length, 0);
		vring_publish(ring);
	} else {
		request_free(request);
	}
	ring->loop->serving = NULL;
	return 0;
}

int vs_event_send(vs_device *device, const void *event, uint32_t length)
{
	struct vring *ring = lock_ring(device, 1);
	struct event_job job = { ring, event, length, -EFAULT };

	if (vring_active(ring))
		loop_guarded(ring->loop, send_event, &job);
	else
		job.result = 0;
	if (job.result == 0) {
		ring->starved = true;
		ring->notify_on = false; /* the loop asks anew, from where the driver's next buffer will be */
	}
	if (job.result == -EPROTO)
		vring_break(ring);
	loop_wake(ring->loop);
	return unlock_ring(ring, job.result);
}
