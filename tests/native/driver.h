/*
 * driver.h - a mock front-end and guest driver, honest or lying, for one device of the data plane.
 *
 *   regions[]   memfds that play guest memory; guest addresses are handed out from them     driver_allocate
 *   rings[]     descriptor table, avail and used ring in region 0, written by hand          driver_chain, driver_offer
 *   device      the code under test, stepped in this very thread (threads = 0), so that every test is exact
 *
 * Layouts come from the kernel's own headers (linux/virtio_ring.h, linux/virtio_scsi.h), not from the data plane's.
 */
#ifndef TESTS_NATIVE_DRIVER_H
#define TESTS_NATIVE_DRIVER_H

#include "../../vstore/dataplane/dataplane.h"

#include <linux/virtio_ring.h>
#include <linux/virtio_scsi.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* cmocka.h wants these four before it */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

/* One turn of the loop's work in the calling thread; returns how much was done. Of a device made with threads = 0. */
unsigned vs_device_step(vs_device *device);

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define FEATURE(bit) (1ull << (bit))

enum {
	CONTROL = 0,
	EVENT = 1,
	REQUEST = 2,
	MOST_REGIONS = 8,
	MOST_RINGS = 6,
	MOST_BUFFERS = 1024,
	REGION_SIZE = 4 << 20,
	BLOCK = 512,
	PAGE = 4096
};
enum { LOG_ALL = 26, INDIRECT = 28, EVENT_IDX = 29, VERSION_1 = 32 };

struct region {
	uint64_t guest, size, user, next;
	int fd;
	uint8_t *host;
};

struct ring {
	uint32_t index, size;
	uint64_t desc_guest, avail_guest, used_guest;
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	int kick, call, error;
	uint16_t next_desc, next_avail, next_used;
};

struct setup {
	uint64_t features;
	uint32_t rings, ring_size, regions, threads, poll_ns;
	bool apart; /* leave a hole between regions (else their guest addresses adjoin) */
	bool io_uring, not_started;
	uint64_t offset; /* of each region in its memfd */
};

struct driver {
	vs_device *device;
	struct setup setup;
	struct region regions[MOST_REGIONS];
	struct ring rings[MOST_RINGS];
	vs_volume *volume;
	int disk; /* the volume's file */
};

/* A stretch of guest memory as one descriptor names it. */
struct buffer {
	uint64_t guest;
	uint32_t length;
	bool writable;
};

struct driver *driver_new(struct setup setup);
void driver_free(struct driver *driver);
/* Another device that knows guest memory and nothing else, as in a process that takes over; its rings are to be started. */
void driver_take_over(struct driver *driver);
void driver_start_ring(struct driver *driver, uint32_t index);
uint64_t driver_user(const struct driver *driver, uint64_t guest);

uint64_t driver_allocate(struct driver *driver, uint32_t region, uint64_t size, uint64_t alignment);
/* The host's view; NULL outside guest memory. */
void *driver_host(const struct driver *driver, uint64_t guest);
/* Copies that honour region borders. */
void driver_write(const struct driver *driver, uint64_t guest, const void *from, uint64_t length);
void driver_read(const struct driver *driver, uint64_t guest, void *to, uint64_t length);

/* Descriptors that describe `buffers`, straight in the ring's table or in an indirect table; answers the head. */
uint16_t driver_chain(struct driver *driver, uint32_t ring, const struct buffer *buffers, uint32_t count);
uint16_t driver_indirect(struct driver *driver, uint32_t ring, const struct buffer *buffers, uint32_t count);
/* As driver_indirect, with the table at a guest address of the caller's choice. */
uint16_t driver_indirect_at(struct driver *driver, uint32_t ring, uint64_t table, const struct buffer *buffers,
			    uint32_t count);
void driver_offer(struct driver *driver, uint32_t ring, uint16_t head);
void driver_kick(struct driver *driver, uint32_t ring);
/* Steps the device until it rests. */
void driver_run(struct driver *driver);
/* Steps the device, for I/O that a kernel thread completes, until the ring has a used element or 10 s have passed. */
bool driver_wait(struct driver *driver, uint32_t ring);
/* The next used element, if there is one. */
bool driver_used(struct driver *driver, uint32_t ring, struct vring_used_elem *element);
/* Whether an eventfd was signalled since the last look. */
bool driver_signalled(int fd);
vs_vring_counters driver_counters(struct driver *driver, uint32_t ring);
bool driver_broken(struct driver *driver, uint32_t ring);
/* The next notice, if there is one. */
bool driver_notice(struct driver *driver, vs_notice *notice);

#endif
