/*
 * driver.c - see driver.h. Guest memory is mapped here a second time, so the test sees what the device wrote.
 */
#define _GNU_SOURCE
#include "driver.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { FIRST_GUEST = 0, USER_BASE_HIGH = 0x7f00 };

static int open_memory(uint64_t size)
{
	int fd = memfd_create("guest", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	return fd;
}

static void add_region(struct driver *driver, uint32_t index)
{
	const struct setup *setup = &driver->setup;
	struct region *region = &driver->regions[index];
	uint64_t stride = setup->apart ? 2 * (uint64_t)REGION_SIZE : REGION_SIZE;

	region->size = REGION_SIZE;
	region->guest = FIRST_GUEST + index * stride;
	/* user addresses run the other way, so that neighbours in guest memory are none in user memory */
	region->user = ((uint64_t)USER_BASE_HIGH << 32) - index * 4 * (uint64_t)REGION_SIZE;
	region->fd = open_memory(region->size + setup->offset);
	region->host = mmap(NULL, region->size, PROT_READ | PROT_WRITE, MAP_SHARED, region->fd, (off_t)setup->offset);
	assert_true(region->host != MAP_FAILED);
	region->next = PAGE; /* guest address 0 is valid but easily mistaken */
	assert_int_equal(
		vs_memory_add(driver->device, region->guest, region->size, region->user, region->fd, setup->offset), 0);
}

static int new_eventfd(void)
{
	int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

static void lay_ring(struct driver *driver, uint32_t index)
{
	struct ring *ring = &driver->rings[index];
	uint32_t size = driver->setup.ring_size;

	ring->index = index;
	ring->size = size;
	ring->desc_guest = driver_allocate(driver, 0, 16ull * size, PAGE);
	ring->avail_guest = driver_allocate(driver, 0, 6 + 2ull * size, PAGE);
	ring->used_guest = driver_allocate(driver, 0, 6 + 8ull * size, PAGE);
	ring->desc = driver_host(driver, ring->desc_guest);
	ring->avail = driver_host(driver, ring->avail_guest);
	ring->used = driver_host(driver, ring->used_guest);
	ring->kick = new_eventfd();
	ring->call = new_eventfd();
	ring->error = new_eventfd();
	assert_int_equal(vs_vring_set_call(driver->device, index, ring->call), 0);
	assert_int_equal(vs_vring_set_error(driver->device, index, ring->error), 0);
}

uint64_t driver_user(const struct driver *driver, uint64_t guest)
{
	for (uint32_t i = 0; i < driver->setup.regions; i++) {
		const struct region *region = &driver->regions[i];

		if (guest - region->guest < region->size)
			return region->user + (guest - region->guest);
	}
	fail_msg("guest address %llx is in no region", (unsigned long long)guest);
	return 0;
}

void driver_start_ring(struct driver *driver, uint32_t index)
{
	struct ring *ring = &driver->rings[index];
	vs_device *device = driver->device;

	assert_int_equal(vs_vring_set_size(device, index, ring->size), 0);
	assert_int_equal(vs_vring_set_base(device, index, ring->next_avail), 0);
	assert_int_equal(vs_vring_set_addresses(device, index, 0, driver_user(driver, ring->desc_guest),
						driver_user(driver, ring->used_guest),
						driver_user(driver, ring->avail_guest), 0),
			 0);
	assert_int_equal(vs_vring_set_kick(device, index, ring->kick), 0);
	assert_int_equal(vs_vring_start(device, index), 0);
	assert_int_equal(vs_vring_enable(device, index, 1), 0);
}

static void new_device(struct driver *driver)
{
	const struct setup *setup = &driver->setup;
	const vs_settings settings = { .vrings = setup->rings,
				       .threads = setup->threads,
				       .poll_ns = setup->poll_ns,
				       .use_io_uring = setup->io_uring };

	driver->device = vs_device_new(&settings);
	assert_non_null(driver->device);
	assert_int_equal(vs_device_set_features(driver->device, setup->features | FEATURE(VERSION_1)), 0);
}

void driver_take_over(struct driver *driver)
{
	vs_device_free(driver->device);
	new_device(driver);
	for (uint32_t i = 0; i < driver->setup.regions; i++) {
		const struct region *region = &driver->regions[i];

		assert_int_equal(vs_memory_add(driver->device, region->guest, region->size, region->user, region->fd,
					       driver->setup.offset),
				 0);
	}
	for (uint32_t i = 0; i < driver->setup.rings; i++) {
		assert_int_equal(vs_vring_set_call(driver->device, i, driver->rings[i].call), 0);
		assert_int_equal(vs_vring_set_error(driver->device, i, driver->rings[i].error), 0);
	}
}

struct driver *driver_new(struct setup setup)
{
	struct driver *driver = calloc(1, sizeof(*driver));

	assert_non_null(driver);
	setup.rings = setup.rings ? setup.rings : 3;
	setup.ring_size = setup.ring_size ? setup.ring_size : 64;
	setup.regions = setup.regions ? setup.regions : 1;
	driver->setup = setup;
	driver->disk = -1;
	new_device(driver);
	for (uint32_t i = 0; i < setup.regions; i++)
		add_region(driver, i);
	for (uint32_t i = 0; i < setup.rings; i++) {
		lay_ring(driver, i);
		if (!setup.not_started)
			driver_start_ring(driver, i);
	}
	return driver;
}

void driver_free(struct driver *driver)
{
	for (uint32_t i = 0; i < driver->setup.rings; i++)
		vs_vring_stop(driver->device, i);
	if (!driver->setup.threads)
		driver_run(driver);
	vs_device_free(driver->device);
	vs_volume_release(driver->volume);
	if (driver->disk >= 0)
		close(driver->disk);
	for (uint32_t i = 0; i < driver->setup.rings; i++) {
		close(driver->rings[i].kick);
		close(driver->rings[i].call);
		close(driver->rings[i].error);
	}
	for (uint32_t i = 0; i < driver->setup.regions; i++) {
		munmap(driver->regions[i].host, driver->regions[i].size);
		close(driver->regions[i].fd);
	}
	free(driver);
}

uint64_t driver_allocate(struct driver *driver, uint32_t index, uint64_t size, uint64_t alignment)
{
	struct region *region = &driver->regions[index];
	uint64_t at = (region->next + alignment - 1) / alignment * alignment;

	assert_true(at + size <= region->size);
	region->next = at + size;
	return region->guest + at;
}

void *driver_host(const struct driver *driver, uint64_t guest)
{
	for (uint32_t i = 0; i < driver->setup.regions; i++) {
		const struct region *region = &driver->regions[i];

		if (guest - region->guest < region->size)
			return region->host + (guest - region->guest);
	}
	return NULL;
}

void driver_write(const struct driver *driver, uint64_t guest, const void *from, uint64_t length)
{
	for (uint64_t i = 0; i < length; i++)
		*(uint8_t *)driver_host(driver, guest + i) = ((const uint8_t *)from)[i];
}

void driver_read(const struct driver *driver, uint64_t guest, void *to, uint64_t length)
{
	for (uint64_t i = 0; i < length; i++)
		((uint8_t *)to)[i] = *(uint8_t *)driver_host(driver, guest + i);
}

static struct vring_desc describe(const struct buffer *buffer, bool last, uint16_t next)
{
	uint16_t flags = (buffer->writable ? VRING_DESC_F_WRITE : 0) | (last ? 0 : VRING_DESC_F_NEXT);

	return (struct vring_desc){ buffer->guest, buffer->length, flags, last ? 0 : next };
}

uint16_t driver_chain(struct driver *driver, uint32_t index, const struct buffer *buffers, uint32_t count)
{
	struct ring *ring = &driver->rings[index];
	uint16_t head = ring->next_desc;

	assert_true(count <= ring->size);
	for (uint32_t i = 0; i < count; i++) {
		uint16_t at = ring->next_desc;

		ring->next_desc = (uint16_t)((at + 1) % ring->size);
		ring->desc[at] = describe(&buffers[i], i + 1 == count, ring->next_desc);
	}
	return head;
}

uint16_t driver_indirect_at(struct driver *driver, uint32_t index, uint64_t table, const struct buffer *buffers,
			    uint32_t count)
{
	struct ring *ring = &driver->rings[index];
	uint16_t head = ring->next_desc;

	for (uint32_t i = 0; i < count; i++) {
		struct vring_desc entry = describe(&buffers[i], i + 1 == count, (uint16_t)(i + 1));

		driver_write(driver, table + i * sizeof(entry), &entry, sizeof(entry));
	}
	ring->desc[head] =
		(struct vring_desc){ table, count * (uint32_t)sizeof(struct vring_desc), VRING_DESC_F_INDIRECT, 0 };
	ring->next_desc = (uint16_t)((head + 1) % ring->size);
	return head;
}

uint16_t driver_indirect(struct driver *driver, uint32_t ring, const struct buffer *buffers, uint32_t count)
{
	uint64_t table = driver_allocate(driver, 0, count * sizeof(struct vring_desc), 16);

	return driver_indirect_at(driver, ring, table, buffers, count);
}

void driver_offer(struct driver *driver, uint32_t index, uint16_t head)
{
	struct ring *ring = &driver->rings[index];

	ring->avail->ring[ring->next_avail++ % ring->size] = head;
	__atomic_store_n(&ring->avail->idx, ring->next_avail, __ATOMIC_SEQ_CST);
}

void driver_kick(struct driver *driver, uint32_t index)
{
	uint64_t one = 1;

	assert_int_equal(write(driver->rings[index].kick, &one, sizeof(one)), sizeof(one));
}

void driver_run(struct driver *driver)
{
	for (unsigned quiet = 0, turns = 0; quiet < 2; turns++) {
		quiet = vs_device_step(driver->device) ? 0 : quiet + 1;
		assert_true(turns < 1000000);
	}
}

static bool used_waits(const struct ring *ring)
{
	return __atomic_load_n(&ring->used->idx, __ATOMIC_ACQUIRE) != ring->next_used;
}

bool driver_wait(struct driver *driver, uint32_t index)
{
	struct timespec now, pause = { 0, 100000 };

	clock_gettime(CLOCK_MONOTONIC, &now);
	for (time_t end = now.tv_sec + 10; now.tv_sec < end; clock_gettime(CLOCK_MONOTONIC, &now)) {
		if (!driver->setup.threads)
			vs_device_step(driver->device);
		if (used_waits(&driver->rings[index]))
			return true;
		nanosleep(&pause, NULL);
	}
	return false;
}

bool driver_used(struct driver *driver, uint32_t index, struct vring_used_elem *element)
{
	struct ring *ring = &driver->rings[index];

	if (!used_waits(ring))
		return false;
	*element = ring->used->ring[ring->next_used++ % ring->size];
	return true;
}

bool driver_signalled(int fd)
{
	uint64_t count;

	return read(fd, &count, sizeof(count)) == sizeof(count);
}

vs_vring_counters driver_counters(struct driver *driver, uint32_t ring)
{
	vs_vring_counters counters;

	assert_int_equal(vs_vring_count(driver->device, ring, &counters), 0);
	return counters;
}

bool driver_broken(struct driver *driver, uint32_t ring)
{
	return driver_counters(driver, ring).broken;
}

bool driver_notice(struct driver *driver, vs_notice *notice)
{
	return vs_device_take(driver->device, notice, 1) == 1;
}
