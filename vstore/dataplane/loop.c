/*
 * loop.c - one thread and the rings it serves.
 *
 *     work --- none for poll_ns ---> ask for kicks --- still none ---> sleep (epoll: kicks, io_uring, wake-ups)
 *      ^___________________________________|______________________________|
 *
 * Waking a sleeping thread costs 12 to 60 us, many times a cached read, so the loop spins for a while before it sleeps.
 * How long it spins follows what spinning would have earned: a sleep shorter than the limit doubles the budget, a longer
 * one halves it, so a busy target answers at once and an idle one costs nothing.
 *
 * The lock is held while the loop works. Whoever wants it raises `wanted`; the loop looks there every turn and steps
 * aside, so a control call waits for one turn at most and the data path pays one load.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { WATCH_WAKE = VS_MAX_VRINGS, WATCH_URING, EVENTS = 16, FIRST_BUDGET_NS = 4000, WAKE_NS = 40000 };

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/* ---- the lock ------------------------------------------------------------------------------- */

void loop_lock(struct loop *loop)
{
	atomic_fetch_add(&loop->wanted, 1);
	pthread_mutex_lock(&loop->lock);
	atomic_fetch_sub(&loop->wanted, 1);
}

void loop_unlock(struct loop *loop)
{
	pthread_mutex_unlock(&loop->lock);
}

static void step_aside(struct loop *loop)
{
	if (LIKELY(!atomic_load_explicit(&loop->wanted, memory_order_relaxed)))
		return;
	pthread_mutex_unlock(&loop->lock);
	while (atomic_load(&loop->wanted))
		sched_yield();
	pthread_mutex_lock(&loop->lock);
}

void loop_wake(struct loop *loop)
{
	poke(loop->wake);
}

/* A device may have 66 rings of which a guest uses three: a turn looks at no others. */
void loop_refresh(struct loop *loop)
{
	struct vs_device *device = loop->device;

	loop->ring_count = 0;
	for (uint32_t i = 0; i < device->settings.vrings; i++) {
		struct vring *ring = &device->rings[i];

		if (ring->loop == loop && (ring->started || ring->in_flight))
			loop->rings[loop->ring_count++] = ring;
	}
}

/* ---- faults ---------------------------------------------------------------------------------- */

static void recover(struct loop *loop)
{
	struct vs_request *request = loop->serving;
	struct vring *ring = loop->serving_ring;

	loop->serving = NULL;
	if (ring)
		vring_break(ring);
	if (request)
		request_dropped(request);
}

/* A turn, for those who wait for its end in epoch.c. */
static void turn_begins(struct loop *loop)
{
	atomic_fetch_add(&loop->turns, 1);
}

static void turn_ends(struct loop *loop)
{
	atomic_fetch_add_explicit(&loop->turns, 1, memory_order_release);
}

unsigned loop_guarded(struct loop *loop, unsigned (*work)(void *argument), void *argument)
{
	sigjmp_buf here;

	if (sigsetjmp(here, 0)) {
		vs_fault_guard = NULL;
		recover(loop);
		turn_ends(loop);
		return 1;
	}
	turn_begins(loop);
	loop->serving_ring = NULL;
	vs_fault_guard = &here;
	unsigned done = work(argument);
	vs_fault_guard = NULL;
	turn_ends(loop);
	return done;
}

/* ---- a turn ------------------------------------------------------------------------------------ */

static void publish(struct vring *ring)
{
	if (!ring->used || ring->broken)
		return;
	ring->loop->serving_ring = ring;
	vring_publish(ring);
}

/*
 * For a driver that sleeps. It is told when we have worked for as long as waking it takes, so that an interrupt is not
 * made for little, but while the chains that are left still keep us at work for as long: were it told after the last,
 * both would sleep in turn.
 */
static unsigned serve_sleeper(struct vring *ring)
{
	uint64_t began = now_ns(), took, left;
	unsigned done = 0, some, wanted = 1, waiting;

	do {
		some = scsi_serve(ring, wanted);
		done += some;
		took = now_ns() - began;
		left = WAKE_NS * done / (took + 1) + 1;
		waiting = vring_waiting(ring);
		if (waiting <= left && took >= WAKE_NS)
			break;
		wanted = waiting > left && waiting - left < AWAKE_BATCH ? waiting - (unsigned)left : AWAKE_BATCH;
	} while (some && waiting && done < FETCH_BATCH);
	return done;
}

static unsigned serve_ring(struct vring *ring)
{
	unsigned done;

	ring->loop->serving_ring = ring;
	/* the event queue's buffers wait there until there is an event */
	if (ring->index == 1) {
		if (ring->starved && vring_active(ring) && vring_has_work(ring)) {
			ring->starved = false;
			device_notice(ring, VS_NOTICE_EVENTS);
		}
		return 0;
	}
	if (!vring_active(ring) || !vring_has_work(ring))
		return 0;
	if (ring->notify_on)
		vring_notify(ring, false);
	done = ring->driver_awake ? scsi_serve(ring, AWAKE_BATCH) : serve_sleeper(ring);
	publish(ring);
	return done;
}

static unsigned turn(void *argument)
{
	struct loop *loop = argument;
	unsigned done = 0;

	for (uint32_t i = 0; i < loop->ring_count; i++)
		if (loop->rings[i]->started)
			done += serve_ring(loop->rings[i]);
	if (loop->uring_in_flight) {
		io_submit(loop);
		unsigned reaped = io_reap(loop);
		for (uint32_t i = 0; reaped && i < loop->ring_count; i++)
			publish(loop->rings[i]);
		done += reaped;
	}
	return done;
}

unsigned loop_step(struct loop *loop)
{
	return loop_guarded(loop, turn, loop);
}

/* ---- sleeping ------------------------------------------------------------------------------------ */

/* Asks for kicks; whether it is safe to sleep: a driver that looked before we asked has left its work in the ring. */
static unsigned ask_for_kicks(void *argument)
{
	struct loop *loop = argument;
	unsigned work = 0;

	for (uint32_t i = 0; i < loop->ring_count; i++)
		if (vring_active(loop->rings[i]) && !loop->rings[i]->notify_on) {
			loop->serving_ring = loop->rings[i];
			vring_notify(loop->rings[i], true);
		}
	/* orders our request for kicks before our look at the ring; pairs with the driver's barrier between the two */
	atomic_thread_fence(memory_order_seq_cst);
	for (uint32_t i = 0; i < loop->ring_count; i++) {
		struct vring *ring = loop->rings[i];
		if (vring_active(ring) && (ring->index != 1 || ring->starved)) {
			loop->serving_ring = ring;
			work |= vring_has_work(ring);
		}
	}
	return work;
}

/* Nothing wakes the loop for a ring without a kick descriptor, nor for what the kernel would not take from us just now. */
static bool must_look_again(const struct loop *loop)
{
	if (loop->uring_queued || loop->backlog)
		return true;
	for (uint32_t i = 0; i < loop->ring_count; i++)
		if (vring_active(loop->rings[i]) && loop->rings[i]->kick < 0)
			return true;
	return false;
}

static void drain(struct loop *loop, const struct epoll_event *events, int count)
{
	uint64_t value;

	for (int i = 0; i < count; i++) {
		uint32_t who = events[i].data.u32;
		int fd = who == WATCH_WAKE ? loop->wake : who < VS_MAX_VRINGS ? loop->device->rings[who].kick : -1;

		if (fd < 0 || read(fd, &value, sizeof(value)) != sizeof(value))
			continue;
		if (who < VS_MAX_VRINGS)
			loop->device->rings[who].counters.kicks++;
	}
}

static void adapt(struct loop *loop, uint64_t slept)
{
	uint64_t limit = loop->device->settings.poll_ns;

	if (slept > limit)
		loop->poll_ns /= 2;
	else if (loop->poll_ns < FIRST_BUDGET_NS)
		loop->poll_ns = FIRST_BUDGET_NS;
	else
		loop->poll_ns *= 2;
	if (loop->poll_ns > limit)
		loop->poll_ns = limit;
}

static void loop_sleep(struct loop *loop)
{
	struct epoll_event events[EVENTS];
	int timeout = must_look_again(loop) ? 1 : -1;

	if (loop_guarded(loop, ask_for_kicks, loop))
		return;
	pthread_mutex_unlock(&loop->lock);
	uint64_t before = now_ns();
	int count = epoll_wait(loop->epoll, events, EVENTS, timeout);
	uint64_t slept = now_ns() - before;
	pthread_mutex_lock(&loop->lock);
	if (count > 0)
		drain(loop, events, count);
	adapt(loop, slept);
}

static void *loop_main(void *argument)
{
	struct loop *loop = argument;
	uint64_t idle_since = 0;

	pthread_mutex_lock(&loop->lock);
	while (!atomic_load_explicit(&loop->stop, memory_order_relaxed)) {
		step_aside(loop);
		if (loop_step(loop)) {
			idle_since = 0;
			continue;
		}
		uint64_t now = now_ns();
		if (!idle_since)
			idle_since = now;
		if (now - idle_since < loop->poll_ns) {
			relax();
			continue;
		}
		loop_sleep(loop);
		idle_since = 0;
	}
	pthread_mutex_unlock(&loop->lock);
	return NULL;
}

/* ---- life ------------------------------------------------------------------------------------------- */

static int watch(struct loop *loop, int fd, uint32_t who)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u32 = who };

	return epoll_ctl(loop->epoll, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

/* Replaces the kick descriptor that the loop sleeps on; takes ownership of `kick` (-1: none). */
int loop_watch(struct vring *ring, int kick)
{
	struct loop *loop = ring->loop;

	if (ring->kick >= 0) {
		epoll_ctl(loop->epoll, EPOLL_CTL_DEL, ring->kick, NULL);
		close(ring->kick);
	}
	int error = kick >= 0 ? watch(loop, kick, ring->index) : 0;
	if (error)
		close(kick); /* the ring is polled, as one without a kick descriptor */
	ring->kick = error ? -1 : kick;
	return error;
}

int loop_open(struct loop *loop, struct vs_device *device, uint32_t index)
{
	int error = 0;

	loop->device = device;
	loop->index = index;
	pthread_mutex_init(&loop->lock, NULL);
	epoch_add_loop(loop);
	loop->epoll = epoll_create1(EPOLL_CLOEXEC);
	loop->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (loop->epoll < 0 || loop->wake < 0)
		return -errno;
	error = watch(loop, loop->wake, WATCH_WAKE);
	if (!error && device->settings.use_io_uring)
		error = io_open(loop);
	if (!error && loop->has_uring)
		error = watch(loop, loop->uring.ring_fd, WATCH_URING);
	return error;
}

int loop_run(struct loop *loop)
{
	int error = pthread_create(&loop->thread, NULL, loop_main, loop);

	loop->running = !error;
	return -error;
}

void loop_close(struct loop *loop)
{
	atomic_store(&loop->stop, true);
	if (loop->running) {
		loop_wake(loop);
		pthread_join(loop->thread, NULL);
	}
	for (struct vs_request *next, *request = loop->free_requests; request; request = next) {
		next = request->next;
		request_destroy(request);
	}
	io_close(loop);
	epoch_remove_loop(loop);
	if (loop->epoll >= 0)
		close(loop->epoll);
	if (loop->wake >= 0)
		close(loop->wake);
	pthread_mutex_destroy(&loop->lock);
}
