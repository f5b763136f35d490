/*
 * internal.h - what the C files of the data plane share, and nobody else sees.
 *
 *   loop.c        one thread: looks at its rings, polls or sleeps          device.c   control calls, LUN table, slow path
 *     virtio_scsi.c   a chain becomes a request; media.c starts it         map.c      block map: cuts, says where bytes lie
 *       vring.c         fetch, push, publish                               io.c       moves bytes: mapping, inline call,
 *         inflight.c      what a process that follows has to do again        uring.c    io_uring
 *         guest_memory.c  translate, copy, dirty log                         fault.c    a SIGBUS becomes an error
 *
 * Locking: every loop has one lock, held while it works and given up while it sleeps or when somebody wants it. Whatever
 * a loop touches (its rings, their requests, LUN table, memory table, features) changes only under that lock, or under
 * the locks of all loops. So the data path itself has no locks and no atomics but those that the guest shares.
 */
#ifndef VSTORE_INTERNAL_H
#define VSTORE_INTERNAL_H

#include "inflight.h"
#include "volume.h"

#include <liburing.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define LIKELY(x)   __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

enum {
	PAGE_BITS = 12,
	INLINE_IOVS = 8,
	MAX_IOVS = 4096,      /* 515 descriptors, each perhaps cut at a region border; far more is an attack */
	MIN_HOP_BUDGET = 515, /* Windows vioscsi builds chains of 512 data segments whatever the ring size */
	COMMAND_HEADER = 51,  /* struct virtio_scsi_cmd_req with a CDB of 32 bytes */
	MAX_TARGETS = 256,
	MAX_LUNS = 16384,
	RING_ENTRIES = 256, /* io_uring submission queue */
	FETCH_BATCH = 32,   /* answers published at once to a driver that sleeps until then: one interrupt */
	AWAKE_BATCH = 8     /* to one that is awake: it works on these while we work on the next */
};

/* Makes an eventfd readable. EAGAIN: it is readable already, and its reader late; nothing is lost. */
static inline void poke(int eventfd)
{
	uint64_t one = 1;

	if (write(eventfd, &one, sizeof(one)) < 0)
		return;
}

/* ---- virtio 1.2, 2.7: split virtqueues --------------------------------------------------- */

enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };
enum { AVAIL_NO_INTERRUPT = 1, USED_NO_NOTIFY = 1 };
enum { FEATURE_LOG_ALL = 26, FEATURE_INDIRECT = 28, FEATURE_EVENT_IDX = 29 };

struct descriptor {
	uint64_t address;
	uint32_t length;
	uint16_t flags;
	uint16_t next;
};

struct avail_ring {
	_Atomic uint16_t flags;
	_Atomic uint16_t index;
	_Atomic uint16_t ring[];
};

struct used_element {
	uint32_t id;
	uint32_t length;
};

struct used_ring {
	_Atomic uint16_t flags;
	_Atomic uint16_t index;
	struct used_element ring[];
};

/* ---- guest memory -------------------------------------------------------------------------- */

struct region {
	uint64_t guest, size, user;
	uint8_t *host; /* where guest address `guest` is mapped */
	void *mapping;
	size_t mapping_length;
};

struct guest_memory {
	struct region *regions; /* sorted by guest address */
	uint32_t count;
	_Atomic uint8_t *log; /* NULL: not logging */
	uint64_t log_length;
	void *log_mapping;
	size_t log_mapping_length;
};

const struct region *guest_memory_region(const struct guest_memory *memory, uint64_t guest);
/* The host address of `length` bytes at a front-end user address that lie in one region, or NULL. */
void *guest_memory_at_user(const struct guest_memory *memory, uint64_t user, uint64_t length);
int guest_memory_add(struct guest_memory *memory, const struct region *wanted, int fd, uint64_t offset);
int guest_memory_remove(struct guest_memory *memory, uint64_t guest, uint64_t size, uint64_t user);
int guest_memory_set_log(struct guest_memory *memory, int fd, uint64_t size, uint64_t offset);
void guest_memory_clear(struct guest_memory *memory);
void guest_memory_log(const struct guest_memory *memory, uint64_t guest, uint64_t length);
void guest_memory_log_host(const struct guest_memory *memory, const void *host, uint64_t length);

/* ---- scatter lists ------------------------------------------------------------------------- */

struct cursor {
	const struct iovec *iov;
	uint32_t count;
	size_t skip; /* bytes of iov[0] already used */
};

typedef void cursor_move(struct cursor *at, void *buffer, uint64_t length);
cursor_move cursor_copy_out;  /* guest -> buffer */
cursor_move cursor_copy_in;   /* buffer -> guest */
cursor_move cursor_fill_zero; /* buffer is not used */
/* The same, but a fault becomes -EFAULT: for callers outside loop_guarded(). */
int cursor_guarded(cursor_move *move, struct cursor *at, void *buffer, uint64_t length);
void cursor_skip(struct cursor *at, uint64_t length);

/* ---- requests ------------------------------------------------------------------------------ */

struct io {
	struct vs_request *request;
	struct vs_volume *volume;
	uint32_t layer, operation;
	uint64_t offset, length;  /* what is left to do, in the layer's file */
	const struct iovec *data; /* the guest's buffers, whole */
	uint32_t data_count;
	struct iovec *left; /* what is left of them; NULL: all */
	uint32_t left_count;
	struct iovec *owned; /* memory of ours behind `data` or `left` */
	void *bounce;        /* O_DIRECT with a buffer that the device cannot take */
	struct iovec bounce_left;
	uint64_t bounce_length;
	struct fresh *claim; /* copy-on-write: what this write makes valid when it has ended */
	uint64_t claim_offset, claim_length;
	bool durable;     /* FUA: RWF_DSYNC */
	bool counted;     /* under way outside a turn, */
	uint32_t entered; /* since this epoch */
	struct io *next;
};

struct vs_request {
	struct vring *ring;
	struct vs_request *next;          /* free list, or the list of notices */
	struct vs_request *newer, *older; /* the loop's list of fast requests in flight */
	struct lun *lun;                  /* fast path only */
	uint64_t tag;
	uint16_t head;
	uint8_t kind;
	bool slow;        /* Python has it */
	bool counted;     /* in ring->in_flight */
	uint64_t barrier; /* number of the LUN that counts it in its barriers; 0: none does */
	uint32_t pending; /* segments not done yet */
	int error;
	uint32_t header_length, response_room;
	uint32_t out_first, out_count; /* data-out in iov[] */
	uint32_t response_first, response_count;
	uint32_t in_first, in_count; /* data-in in iov[] */
	uint64_t out_length, in_length;
	uint32_t iov_count, iov_room;
	struct iovec *iov;
	struct iovec inline_iov[INLINE_IOVS];
	struct io io; /* the first segment; further ones are allocated */
	bool io_busy;
	uint8_t header[VS_HEADER_BYTES];
};

/* ---- rings ----------------------------------------------------------------------------------- */

struct vring {
	struct vs_device *device;
	struct loop *loop;
	uint32_t index, size;
	struct descriptor *desc;
	struct avail_ring *avail;
	struct used_ring *used;
	uint64_t desc_user, avail_user, used_user, log_guest;
	bool addressed, log_used;
	bool started, enabled, broken, notify_on, idle_told, wants_idle, starved;
	bool driver_awake; /* it asked for no interrupt the last time it could have had one */
	uint16_t next_avail, next_used, published;
	uint32_t in_flight;
	int kick, call, error;
	struct inflight_queue *inflight; /* NULL: nobody keeps account of what is in flight */
	uint64_t fetches;
	struct fetch_again *again;
	uint32_t again_count, again_left;
	uint32_t notices; /* 1 << VS_NOTICE_* waiting for Python, under notice_lock */
	vs_vring_counters counters;
};

/* 1: request->iov etc. filled, 0: nothing there, -EPROTO: the driver lies, -ENOMEM. */
int vring_fetch(struct vring *ring, struct vs_request *request);
int vring_start(struct vring *ring);
void vring_push(struct vring *ring, uint16_t head, uint32_t length);
/* Makes what was pushed visible; interrupts if the driver wants it. */
void vring_publish(struct vring *ring);
bool vring_has_work(const struct vring *ring);
uint32_t vring_waiting(const struct vring *ring);
void vring_notify(struct vring *ring, bool on);
void vring_break(struct vring *ring);
static inline bool vring_active(const struct vring *ring)
{
	return ring->started && ring->enabled && !ring->broken;
}

/* ---- I/O ---------------------------------------------------------------------------------------- */

static inline uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* io.c */
/* Done (0), failed (-errno), or IO_STARTED: io_done() follows. */
enum { IO_STARTED = 1 };
int io_start(struct loop *loop, struct io *io);
/* Gives back what the I/O holds; copies bounced data to the guest. Returns `result`, or -EFAULT. */
int io_end(struct io *io, int result);
void io_done(struct io *io, int result);
struct layer *io_layer(const struct io *io);
/* What is left of it, as the kernel wants it: its buffers, */
struct iovec *io_iovs(struct io *io, uint32_t *count);
/* which `length` bytes have been moved of. The request's own list stays whole: Python may have to repeat the command. */
int io_progress(struct io *io, uint64_t length);
/* uring.c */
void io_queue(struct loop *loop, struct io *io);
int io_open(struct loop *loop);
void io_close(struct loop *loop);
void io_submit(struct loop *loop);
/* Handles completions; returns how many. */
unsigned io_reap(struct loop *loop);

/* ---- faults --------------------------------------------------------------------------------------- */

/* A SIGBUS while `vs_fault_guard` is set jumps there: guest memory or a mapped file was cut short. */
extern _Thread_local sigjmp_buf *vs_fault_guard;
int fault_install(void);
/* memcpy that fails instead of faulting: 0 or -EFAULT. */
int fault_safe_copy(void *to, const void *from, size_t length);

/* ---- LUNs, loops, device -------------------------------------------------------------------------- */

/* What one loop has answered, under its lock; so far from the next that no two loops write to one cache line. */
struct lun_counts {
	vs_lun_counters counters;
	uint8_t apart[128 - sizeof(vs_lun_counters)];
};

struct lun {
	vs_lun_settings settings;
	struct vs_volume *volume;
	uint64_t number; /* no other LUN ever has it, also at the same address */
	_Atomic uint32_t in_flight;
	_Atomic uint32_t barriers;  /* commands in Python's hands that no younger one may overtake */
	struct lun_counts counts[]; /* one for each loop */
};

struct lun_table {
	uint32_t room;
	struct lun *luns[];
};

struct loop {
	struct vs_device *device;
	uint32_t index;
	pthread_t thread;
	pthread_mutex_t lock;
	_Atomic uint32_t wanted;
	_Atomic bool stop;
	_Atomic uint64_t turns; /* odd: in a turn, see epoch.c */
	struct loop *next;      /* of all devices */
	bool running;
	int epoll, wake;
	struct io_uring uring;
	bool has_uring;
	uint32_t uring_in_flight, uring_queued;
	struct io *backlog, **backlog_tail;
	uint64_t poll_ns;                   /* today's budget: 0 .. settings.poll_ns */
	struct vring *rings[VS_MAX_VRINGS]; /* those that run, or have something in flight: see loop_refresh() */
	uint32_t ring_count;
	struct vs_request *free_requests;
	struct vs_request *newest;           /* fast requests in flight */
	struct vring *volatile serving_ring; /* whom a SIGBUS now would be blamed on, see loop_guarded() */
	struct vs_request *volatile serving;
	uint32_t hot_copies;
	long major_faults;
	uint32_t wary; /* plain writes of which it is to be known whether they waited */
};

struct vs_device {
	vs_settings settings;
	struct inflight_region inflight;
	struct guest_memory memory;
	uint64_t features;
	bool event_index, indirect, logging;
	struct vring rings[VS_MAX_VRINGS];
	struct loop *loops;
	uint32_t loop_count;
	const vs_fast_row *fast[256];
	vs_fast_row rows[256];
	struct lun_table *targets[MAX_TARGETS];
	uint64_t luns_made;
	pthread_mutex_t notice_lock;
	struct vs_request *notices, **notices_tail;
	uint64_t notice_rings[2]; /* bit set: rings[i].notices is not 0 */
	int notice_fd;
};

/* loop.c */
int loop_open(struct loop *loop, struct vs_device *device, uint32_t index);
int loop_run(struct loop *loop);
void loop_close(struct loop *loop);
void loop_lock(struct loop *loop);
void loop_unlock(struct loop *loop);
void loop_wake(struct loop *loop);
void loop_refresh(struct loop *loop);
/* One turn over the rings and completions; returns what was done. With no thread (settings.threads = 0) tests call it. */
unsigned loop_step(struct loop *loop);
unsigned vs_device_step(struct vs_device *device);
int loop_watch(struct vring *ring, int kick);
/* Runs work(argument). A SIGBUS in it breaks the ring that was being served and drops the one request. */
unsigned loop_guarded(struct loop *loop, unsigned (*work)(void *argument), void *argument);

/* epoch.c */
void epoch_add_loop(struct loop *loop);
void epoch_remove_loop(struct loop *loop);

/* media.c */
struct media { /* what a CDB asks of the volume */
	uint32_t operation;
	uint64_t offset, length;
	bool durable;
};

/* Runs ranges[0..count) as one request, to its end or to Python. */
void media_start(struct vs_request *request, const struct media *ranges, uint32_t count);
struct io *media_io(struct vs_request *request, const struct media *media, const struct extent *extent);

/* virtio_scsi.c */
unsigned scsi_serve(struct vring *ring, unsigned limit);
/* GOOD, or Python's, as request->error says. */
void scsi_answer(struct vs_request *request);
void scsi_request_done(struct vs_request *request);

/* request.c */
struct vs_request *request_new(struct loop *loop);
int request_grow(struct vs_request *request);
int request_parse(struct vs_request *request, bool command);
void request_dropped(struct vs_request *request);
void request_destroy(struct vs_request *request);
void request_free(struct vs_request *request);
void request_finish(struct vs_request *request, const void *response, uint32_t length, uint64_t data_in);
void request_to_python(struct vs_request *request);
/* The loop's list of fast requests in flight. */
void request_link(struct vs_request *request);
void request_unlink(struct vs_request *request);

/* device.c */
void device_lock(struct vs_device *device);
void device_unlock(struct vs_device *device);
void device_notice(struct vring *ring, uint32_t kind);
struct lun *device_lun(const struct vs_device *device, const uint8_t lun[8]);

#endif
