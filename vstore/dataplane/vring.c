/*
 * vring.c - the split virtqueue, device side (virtio 1.2, 2.7).
 *
 *   driver:  desc[] + avail.ring[i] = head; avail.index++     --fetch-->   request with private iovecs
 *   device:  used.ring[i] = {head, bytes}; used.index++       <--push--    (made visible by publish)
 *
 * Everything in the ring is the driver's to change at any moment, so each descriptor is copied once and the copy is
 * checked. A driver that lies breaks this ring for good, and nothing else.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* ---- fetching ------------------------------------------------------------------------------ */

struct walk {
	struct vring *ring;
	struct vs_request *request;
	uint32_t hops, budget;
	bool writing; /* a device-writable descriptor was seen: no readable one may follow */
	uint64_t total;
};

static struct descriptor copy_descriptor(const struct descriptor *from)
{
	const volatile uint64_t *words = (const volatile uint64_t *)from;
	uint64_t address = words[0], rest = words[1];

	return (struct descriptor){ address, (uint32_t)rest, (uint16_t)(rest >> 32), (uint16_t)(rest >> 48) };
}

/* One buffer of the chain, cut where guest memory regions meet: adjacent guest addresses may lie far apart here. */
static int add_buffer(struct walk *walk, uint64_t address, uint32_t length, bool writable)
{
	struct vs_request *request = walk->request;

	if (!length || (walk->writing && !writable))
		return -EPROTO;
	walk->writing = writable;
	walk->total += length;
	if (walk->total > UINT32_MAX) /* virtio 1.2 2.7.5.2: at most 2^32 bytes */
		return -EPROTO;
	while (length) {
		const struct region *region = guest_memory_region(&walk->ring->device->memory, address);
		if (!region)
			return -EPROTO;
		uint64_t within = address - region->guest;
		uint64_t left = region->size - within;
		uint32_t take = left < length ? (uint32_t)left : length;
		if (request->iov_count == request->iov_room) {
			int error = request_grow(request);
			if (error)
				return error;
		}
		request->iov[request->iov_count++] = (struct iovec){ region->host + within, take };
		address += take;
		length -= take;
	}
	if (!writable)
		request->out_count = request->iov_count;
	return 0;
}

/* An entry of an indirect table; the table itself may cross a region border. */
static int table_entry(const struct guest_memory *memory, uint64_t address, struct descriptor *entry)
{
	uint8_t *to = (uint8_t *)entry;

	for (size_t have = 0; have < sizeof(*entry);) {
		const struct region *region = guest_memory_region(memory, address + have);
		if (!region)
			return -EPROTO;
		uint64_t within = address + have - region->guest;
		size_t take = sizeof(*entry) - have;
		if (take > region->size - within)
			take = region->size - within;
		if (take == sizeof(*entry) && ((uintptr_t)(region->host + within) & 7) == 0)
			*entry = copy_descriptor((const struct descriptor *)(const void *)(region->host + within));
		else
			memcpy(to + have, region->host + within, take);
		have += take;
	}
	return 0;
}

/* virtio 1.2 2.7.5.3: no INDIRECT inside a table, no NEXT beside INDIRECT. */
static int walk_table(struct walk *walk, const struct descriptor *table)
{
	uint32_t count = table->length / sizeof(struct descriptor), index = 0;
	struct descriptor entry;

	if (!walk->ring->device->indirect || (table->flags & DESC_NEXT) || !count ||
	    table->length % sizeof(struct descriptor))
		return -EPROTO;
	for (;;) {
		if (++walk->hops > walk->budget)
			return -EPROTO;
		int error = table_entry(&walk->ring->device->memory, table->address + index * sizeof(entry), &entry);
		if (error)
			return error;
		if (entry.flags & DESC_INDIRECT)
			return -EPROTO;
		error = add_buffer(walk, entry.address, entry.length, entry.flags & DESC_WRITE);
		if (error || !(entry.flags & DESC_NEXT))
			return error;
		index = entry.next;
		if (index >= count)
			return -EPROTO;
	}
}

static int walk_chain(struct walk *walk, uint16_t head)
{
	uint32_t index = head;

	for (;;) {
		if (index >= walk->ring->size || ++walk->hops > walk->budget)
			return -EPROTO;
		struct descriptor entry = copy_descriptor(&walk->ring->desc[index]);
		if (entry.flags & DESC_INDIRECT)
			return walk_table(walk, &entry);
		int error = add_buffer(walk, entry.address, entry.length, entry.flags & DESC_WRITE);
		if (error || !(entry.flags & DESC_NEXT))
			return error;
		index = entry.next;
	}
}

/* Chains that the driver has made available and we have not fetched, if it tells the truth. */
uint32_t vring_waiting(const struct vring *ring)
{
	uint16_t available = atomic_load_explicit(&ring->avail->index, memory_order_acquire);

	return (uint16_t)(available - ring->next_avail) + ring->again_left;
}

bool vring_has_work(const struct vring *ring)
{
	return vring_waiting(ring);
}

static int fetch_chain(struct vring *ring, struct vs_request *request, uint16_t head)
{
	struct walk walk = { .ring = ring, .request = request };

	request->head = head;
	walk.budget = ring->size > MIN_HOP_BUDGET ? ring->size : MIN_HOP_BUDGET;
	return walk_chain(&walk, head);
}

/* What a process before this one had fetched. It is marked already. */
static int fetch_again(struct vring *ring, struct vs_request *request)
{
	int error = fetch_chain(ring, request, ring->again[ring->again_count - ring->again_left].head);

	if (error)
		return error;
	ring->again_left--;
	return 1;
}

int vring_fetch(struct vring *ring, struct vs_request *request)
{
	uint16_t available = atomic_load_explicit(&ring->avail->index, memory_order_acquire);
	uint16_t waiting = (uint16_t)(available - ring->next_avail);

	if (UNLIKELY(ring->again_left))
		return fetch_again(ring, request);
	if (!waiting)
		return 0;
	if (waiting > ring->size)
		return -EPROTO;
	uint16_t head =
		atomic_load_explicit(&ring->avail->ring[ring->next_avail & (ring->size - 1)], memory_order_relaxed);
	int error = fetch_chain(ring, request, head);
	if (error)
		return error;
	if (ring->inflight && !inflight_fetched(ring, head))
		return -EPROTO;
	ring->next_avail++;
	return 1;
}

/* ---- answering ------------------------------------------------------------------------------ */

static void log_used(const struct vring *ring, size_t offset, size_t length)
{
	if (UNLIKELY(ring->device->logging && ring->log_used))
		guest_memory_log(&ring->device->memory, ring->log_guest + offset, length);
}

void vring_push(struct vring *ring, uint16_t head, uint32_t length)
{
	uint32_t slot = ring->next_used & (ring->size - 1);

	ring->used->ring[slot] = (struct used_element){ head, length };
	log_used(ring, offsetof(struct used_ring, ring) + slot * sizeof(struct used_element),
		 sizeof(struct used_element));
	KILL_POINT();
	if (ring->inflight)
		inflight_pushed(ring, head);
	ring->next_used++;
}

/* virtio 1.2 2.7.10: with EVENT_IDX the driver names the used index after which it wants to be told. */
static bool wants_interrupt(const struct vring *ring, uint16_t before)
{
	if (!ring->device->event_index)
		return !(atomic_load_explicit(&ring->avail->flags, memory_order_relaxed) & AVAIL_NO_INTERRUPT);
	uint16_t event = atomic_load_explicit(&ring->avail->ring[ring->size], memory_order_relaxed);
	return (uint16_t)(ring->next_used - event - 1) < (uint16_t)(ring->next_used - before);
}

void vring_publish(struct vring *ring)
{
	uint16_t before = ring->published;

	if (before == ring->next_used)
		return;
	atomic_store_explicit(&ring->used->index, ring->next_used, memory_order_release);
	ring->published = ring->next_used;
	ring->counters.batches++;
	log_used(ring, offsetof(struct used_ring, index), sizeof(uint16_t));
	/* orders the index above before the driver's event index below; pairs with the driver's barrier between them */
	atomic_thread_fence(memory_order_seq_cst);
	ring->driver_awake = !wants_interrupt(ring, before);
	if (ring->call >= 0 && !ring->driver_awake) {
		ring->counters.calls++;
		KILL_POINT();
		poke(ring->call);
	}
	if (ring->inflight)
		inflight_published(ring, (uint16_t)(ring->published - before));
}

/* The event index behind the used elements: where the driver reads whether we want a kick. */
static _Atomic uint16_t *avail_event(const struct vring *ring)
{
	return (_Atomic uint16_t *)(void *)&ring->used->ring[ring->size];
}

void vring_notify(struct vring *ring, bool on)
{
	if (ring->device->event_index) {
		/* off: the old value stays, which the driver will not pass again before 2^16 more chains */
		if (on) {
			atomic_store_explicit(avail_event(ring), ring->next_avail, memory_order_relaxed);
			log_used(ring, offsetof(struct used_ring, ring) + ring->size * sizeof(struct used_element), 2);
		}
	} else {
		atomic_store_explicit(&ring->used->flags, on ? 0 : USED_NO_NOTIFY, memory_order_relaxed);
		log_used(ring, 0, sizeof(uint16_t));
	}
	ring->notify_on = on;
}

void vring_break(struct vring *ring)
{
	if (ring->broken)
		return;
	ring->broken = true;
	if (ring->error >= 0)
		poke(ring->error);
	device_notice(ring, VS_NOTICE_BROKEN);
}

/* ---- starting ------------------------------------------------------------------------------- */

static bool misaligned(uint64_t address, uint64_t alignment)
{
	return address & (alignment - 1);
}

int vring_start(struct vring *ring)
{
	const struct guest_memory *memory = &ring->device->memory;
	uint64_t size = ring->size;

	if (!size || size > VS_MAX_VRING_SIZE || (size & (size - 1)) || !ring->addressed)
		return -EINVAL;
	if (misaligned(ring->desc_user, 16) || misaligned(ring->avail_user, 2) || misaligned(ring->used_user, 4))
		return -EINVAL;
	struct descriptor *desc = guest_memory_at_user(memory, ring->desc_user, size * sizeof(struct descriptor));
	struct avail_ring *avail = guest_memory_at_user(memory, ring->avail_user, 6 + 2 * size);
	struct used_ring *used = guest_memory_at_user(memory, ring->used_user, 6 + 8 * size);
	/* the mapping keeps the page offset, so host alignment follows; a region at an odd offset may not */
	if (!desc || !avail || !used || misaligned((uintptr_t)desc, 8) || misaligned((uintptr_t)avail, 2) ||
	    misaligned((uintptr_t)used, 4))
		return -EFAULT;
	ring->desc = desc;
	ring->avail = avail;
	ring->used = used;
	if (!ring->started) {
		uint16_t index = atomic_load_explicit(&used->index, memory_order_acquire);
		ring->next_used = ring->published = index;
		return ring->in_flight ? 0 : inflight_begin(ring);
	}
	return 0;
}
