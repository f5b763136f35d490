/*
 * inflight.h - inflight.c, which keeps account of what is in flight: what Python tells it, between the marks, and what
 * rings and device see of it.
 */
#ifndef VSTORE_INFLIGHT_H
#define VSTORE_INFLIGHT_H

#include "dataplane.h"

#include <stdbool.h>

/* cffi: begin */

/* Memory in which account is kept of what is in flight, so that whoever comes after this process knows (inflight.c). It
 * begins with zeros, and holds `vrings` rings of up to `entries` entries. A larger ring, or one beyond these, runs without.
 * fd -1: there is none from now on. -EBUSY: a ring is started; -EINVAL: `size` is too small; -EFBIG: the file is. */
int vs_device_set_inflight(vs_device *device, int fd, uint64_t size, uint64_t offset, uint32_t vrings,
			   uint32_t entries);
/* Bytes that it takes. */
uint64_t vs_inflight_size(uint32_t vrings, uint32_t entries);

/* cffi: end */

struct vring;

struct inflight_region {
	uint8_t *bytes; /* NULL: there is none */
	size_t length;
	uint32_t vrings, entries;
};

/* A chain that another process has fetched, and not answered. */
struct fetch_again {
	uint64_t counter;
	uint16_t head;
};

/* false: the driver offers a chain that it has not got back. */
bool inflight_fetched(struct vring *ring, uint16_t head);
void inflight_pushed(struct vring *ring, uint16_t head);
void inflight_published(struct vring *ring, uint16_t count);
/* Of a ring that starts, with next_used known: which chain is next, and which are to be fetched again. -ENOMEM. */
int inflight_begin(struct vring *ring);
void inflight_unmap(struct vs_device *device);
/* The tests end the process at each of these. */
#ifdef VS_KILL_POINTS
void vs_kill_point(void) __attribute__((weak));
#define KILL_POINT()                     \
	do {                             \
		if (vs_kill_point)       \
			vs_kill_point(); \
	} while (0)
#else
#define KILL_POINT() (void)0
#endif

#endif
