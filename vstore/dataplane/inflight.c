/*
 * inflight.c - which chains were fetched and are not used yet, in memory that outlives this process.
 *
 *     region (a memfd; the front-end, or whoever started us, holds it too)
 *       | ring 0 | ring 1 | ...       each: head, then for every descriptor { in flight, next of the batch, counter }
 *
 *     fetch      counter, then in_flight = 1
 *     push       used element; next = last_batch_head; last_batch_head = this one      (again for each of the batch)
 *     publish    used->index; in_flight = 0 for each of the batch; used_index = used->index
 *
 * Between any two of these stores the process may be killed. Whoever begins on such a region (a process that takes over,
 * or this one after a front-end came back) compares used_index with the ring's: where they differ the last batch was
 * published, and its marks are wiped off by its list. What is marked then was fetched and not used: it is fetched again,
 * oldest first, and the driver's next chain is the one behind all of these (vhost-user, "Inflight I/O tracking").
 *
 * A process that dies has made all of its stores up to some instruction and none after it, so the compiler's order is
 * all that counts, and the hot path has no fence for this. The other side may write to the region as it likes: nothing
 * read from it is used before it was compared with the ring's size. Of the event queue nothing is marked, as a buffer is
 * taken from it only to be used at once.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

enum { VERSION = 1, EVENT_RING = 1, ALIGNMENT = 64 };

/* vhost-user, struct QueueRegionSplit and DescStateSplit */
struct inflight_entry {
	uint8_t in_flight;
	uint8_t padding[5];
	uint16_t next;
	uint64_t counter;
};

struct inflight_queue {
	uint64_t features;
	uint16_t version; /* 0: nobody has used it yet */
	uint16_t entries;
	uint16_t last_batch_head;
	uint16_t used_index;
	struct inflight_entry entry[];
};

_Static_assert(sizeof(struct inflight_entry) == 16 && sizeof(struct inflight_queue) == 16, "vhost-user's layout");

/* The compiler keeps stores on their side of this. */
#define IN_ORDER() atomic_signal_fence(memory_order_seq_cst)

/* ---- the region --------------------------------------------------------------------------------- */

/* As the packed layout needs, which is the larger one: QEMU 7.2 asks for the region before it says which it will be. */
static uint64_t stride(uint32_t entries)
{
	return (32 + 32 * (uint64_t)entries + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

uint64_t vs_inflight_size(uint32_t vrings, uint32_t entries)
{
	return vrings * stride(entries);
}

static struct inflight_queue *queue_of(const struct vs_device *device, uint32_t index)
{
	const struct inflight_region *region = &device->inflight;

	return index < region->vrings ? (void *)(region->bytes + index * stride(region->entries)) : NULL;
}

void inflight_unmap(struct vs_device *device)
{
	struct inflight_region *region = &device->inflight;

	if (region->bytes)
		munmap(region->bytes, region->length);
	*region = (struct inflight_region){ 0 };
	for (uint32_t i = 0; i < device->settings.vrings; i++) {
		free(device->rings[i].again);
		device->rings[i].again = NULL;
		device->rings[i].again_left = 0;
		device->rings[i].inflight = NULL;
	}
}

static int map_region(struct inflight_region *region, int fd, uint64_t size, uint64_t offset)
{
	struct stat status;
	uint64_t end;

	if (fstat(fd, &status))
		return -errno;
	if (__builtin_add_overflow(size, offset, &end) || end > (uint64_t)status.st_size)
		return -EFBIG;
	region->bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
	if (region->bytes == MAP_FAILED)
		return -errno;
	region->length = size;
	return 0;
}

static bool any_ring_in_use(const struct vs_device *device)
{
	for (uint32_t i = 0; i < device->settings.vrings; i++)
		if (device->rings[i].started || device->rings[i].in_flight)
			return true;
	return false;
}

int vs_device_set_inflight(vs_device *device, int fd, uint64_t size, uint64_t offset, uint32_t vrings, uint32_t entries)
{
	struct inflight_region region = { .vrings = vrings, .entries = entries };
	int error = 0;

	if (fd >= 0 && (!vrings || !entries || entries > VS_MAX_VRING_SIZE || size < vs_inflight_size(vrings, entries)))
		return -EINVAL;
	device_lock(device);
	if (any_ring_in_use(device))
		error = -EBUSY;
	else if (fd >= 0)
		error = map_region(&region, fd, size, offset);
	if (!error) {
		inflight_unmap(device);
		if (fd >= 0)
			device->inflight = region;
	}
	device_unlock(device);
	return error;
}

/* ---- the hot path --------------------------------------------------------------------------------- */

bool inflight_fetched(struct vring *ring, uint16_t head)
{
	struct inflight_entry *entry = &ring->inflight->entry[head];

	/* a head is the driver's again only through the used ring */
	if (entry->in_flight == 1)
		return false;
	entry->counter = ring->fetches++;
	KILL_POINT();
	IN_ORDER();
	entry->in_flight = 1;
	KILL_POINT();
	return true;
}

void inflight_pushed(struct vring *ring, uint16_t head)
{
	struct inflight_queue *queue = ring->inflight;

	queue->entry[head].next = queue->last_batch_head;
	KILL_POINT();
	IN_ORDER();
	queue->last_batch_head = head;
	KILL_POINT();
	IN_ORDER();
}

/* Wipes off the marks of the last `count` that were pushed. false: what the list says cannot be. */
static bool wipe_batch(struct inflight_queue *queue, uint32_t size, uint32_t count)
{
	uint16_t head = queue->last_batch_head;

	while (count--) {
		if (head >= size)
			return false;
		struct inflight_entry *entry = &queue->entry[head];
		head = entry->next;
		entry->in_flight = 0;
		KILL_POINT();
	}
	return true;
}

void inflight_published(struct vring *ring, uint16_t count)
{
	struct inflight_queue *queue = ring->inflight;

	KILL_POINT();
	IN_ORDER();
	if (UNLIKELY(!wipe_batch(queue, ring->size, count))) {
		vring_break(ring);
		return;
	}
	IN_ORDER();
	queue->used_index = ring->published;
	KILL_POINT();
	IN_ORDER();
}

/* ---- beginning on a region --------------------------------------------------------------------------- */

static void begin_fresh(struct inflight_queue *queue, uint32_t entries, uint16_t used)
{
	memset(queue->entry, 0, entries * sizeof(queue->entry[0]));
	queue->features = 0;
	queue->entries = (uint16_t)entries;
	queue->last_batch_head = 0;
	queue->used_index = used;
	IN_ORDER();
	queue->version = VERSION;
}

static int by_counter(const void *a, const void *b)
{
	const struct fetch_again *one = a, *other = b;

	return one->counter < other->counter ? -1 : one->counter > other->counter;
}

/* What is marked, oldest first. */
static int collect(struct vring *ring, const struct inflight_queue *queue)
{
	uint32_t count = 0;

	ring->again = malloc(ring->size * sizeof(*ring->again));
	if (!ring->again)
		return -ENOMEM;
	for (uint32_t i = 0; i < ring->size; i++)
		if (queue->entry[i].in_flight == 1)
			ring->again[count++] = (struct fetch_again){ queue->entry[i].counter, (uint16_t)i };
	qsort(ring->again, count, sizeof(*ring->again), by_counter);
	ring->fetches = count ? ring->again[count - 1].counter + 1 : 0;
	ring->again_count = ring->again_left = count;
	return 0;
}

int inflight_begin(struct vring *ring)
{
	struct inflight_queue *queue = queue_of(ring->device, ring->index);
	uint16_t used = ring->next_used;

	free(ring->again);
	ring->again = NULL;
	ring->again_left = 0;
	ring->inflight = NULL;
	if (!queue || ring->size > ring->device->inflight.entries)
		return 0;
	/* a ring that its driver broke, and has set up anew: what was dropped then is not owed any more */
	if (!queue->version || ring->broken)
		begin_fresh(queue, ring->device->inflight.entries, used);
	else
		ring->next_avail = used;
	if (ring->index == EVENT_RING)
		return 0;
	if (queue->used_index != used) {
		uint16_t batch = (uint16_t)(used - queue->used_index);
		wipe_batch(queue, ring->size, batch < ring->size ? batch : ring->size);
		IN_ORDER();
		queue->used_index = used;
	}
	int error = collect(ring, queue);
	if (error)
		return error;
	ring->next_avail = (uint16_t)(ring->next_avail + ring->again_left);
	ring->counters.resumed += ring->again_left;
	ring->inflight = queue;
	return 0;
}
