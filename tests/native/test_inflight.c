/*
 * test_inflight.c - a process that serves rings is killed at every store that matters, another one takes over, and each
 * chain comes back to the driver once. Layouts are those of the vhost-user specification, written down here again.
 */
#define _GNU_SOURCE
#include "../../vstore/dataplane/inflight.h"
#include "commands.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { HEADER = sizeof(struct virtio_scsi_cmd_req), RESPONSE = sizeof(struct virtio_scsi_cmd_resp), RING = 16 };

struct split_entry {
	uint8_t inflight, padding[5];
	uint16_t next;
	uint64_t counter;
};

struct split_queue {
	uint64_t features;
	uint16_t version, desc_num, last_batch_head, used_idx;
	struct split_entry desc[RING];
};

struct world {
	struct driver *driver;
	int fd;
	uint8_t *bytes;
	uint64_t size;
	uint32_t offered;
};

static long points_left = -1; /* -1: the process lives */

void vs_kill_point(void);
void vs_kill_point(void)
{
	if (points_left >= 0 && points_left-- == 0)
		raise(SIGKILL);
}

static struct split_queue *queue(const struct world *world, uint32_t ring)
{
	return (void *)(world->bytes + ring * (world->size / world->driver->setup.rings));
}

static void start_rings(struct world *world)
{
	struct driver *driver = world->driver;

	put_disk(driver);
	assert_int_equal(vs_device_set_inflight(driver->device, world->fd, world->size, 0, driver->setup.rings, RING),
			 0);
	for (uint32_t i = 0; i < driver->setup.rings; i++) {
		struct ring *ring = &driver->rings[i];
		uint16_t offered = ring->next_avail;

		ring->next_avail = ring->used->idx; /* as the base, which is all that QEMU knows after a reconnect */
		driver_start_ring(driver, i);
		ring->next_avail = offered;
	}
}

/* Rings whose indexes begin at `first`: they wrap at 65536. */
static struct world new_world(uint16_t first)
{
	struct world world = { 0 };

	world.driver = driver_with_disk(
		ON_MEMORY, (struct setup){ .features = FEATURE(INDIRECT), .ring_size = RING, .not_started = true });
	world.size = vs_inflight_size(world.driver->setup.rings, RING);
	world.fd = memfd_create("inflight", MFD_CLOEXEC);
	assert_int_equal(ftruncate(world.fd, (off_t)world.size), 0);
	world.bytes = mmap(NULL, world.size, PROT_READ | PROT_WRITE, MAP_SHARED, world.fd, 0);
	assert_true(world.bytes != MAP_FAILED);
	for (uint32_t i = 0; i < world.driver->setup.rings; i++) {
		struct ring *ring = &world.driver->rings[i];

		ring->next_avail = ring->next_used = ring->used->idx = ring->avail->idx = first;
	}
	return world;
}

static void end_world(struct world *world)
{
	driver_free(world->driver);
	munmap(world->bytes, world->size);
	close(world->fd);
}

static void offer_read(struct world *world)
{
	struct driver *driver = world->driver;
	struct buffer buffers[] = { { new_header(driver, read_10(0, 1), 1), HEADER, false },
				    { new_response(driver), RESPONSE, true },
				    data_in(driver, BLOCK) };

	driver_offer(driver, REQUEST, driver_indirect(driver, REQUEST, buffers, 3));
	world->offered++;
}

static void offer_slow(struct world *world, uint64_t tag)
{
	struct driver *driver = world->driver;
	struct buffer buffers[] = { { new_header(driver, test_unit_ready(), tag), HEADER, false },
				    { new_response(driver), RESPONSE, true } };

	driver_offer(driver, REQUEST, driver_indirect(driver, REQUEST, buffers, 2));
	world->offered++;
}

/* Serves until nothing is left: Python's part answers two at a time, the younger one first. */
static void serve(struct world *world)
{
	struct driver *driver = world->driver;
	vs_notice notices[2];

	for (;;) {
		driver_run(driver);
		int count = vs_device_take(driver->device, notices, 2);
		vs_completion completions[2];
		uint32_t requests = 0;

		if (count <= 0)
			return;
		for (int i = count; i--;)
			if (notices[i].kind == VS_NOTICE_REQUEST)
				completions[requests++] =
					(vs_completion){ .request = notices[i].request, .response_length = RESPONSE };
		assert_int_equal(vs_complete(driver->device, completions, requests), 0);
	}
}

/* A process that serves, and is killed at the point of this number. Whether it came that far. */
static bool killed_at(struct world *world, long point)
{
	fflush(NULL);
	pid_t child = fork();
	int status;

	if (!child) {
		setenv("CMOCKA_TEST_ABORT", "1", 1); /* what fails here ends this process, and only this */
		points_left = point;
		driver_take_over(world->driver);
		start_rings(world);
		serve(world);
		_exit(0);
	}
	assert_true(child > 0);
	assert_int_equal(waitpid(child, &status, 0), child);
	if (WIFSIGNALED(status))
		assert_int_equal(WTERMSIG(status), SIGKILL);
	else
		assert_int_equal(WEXITSTATUS(status), 0);
	return WIFSIGNALED(status);
}

static void assert_each_used_once(struct world *world)
{
	const struct ring *ring = &world->driver->rings[REQUEST];
	uint16_t first = ring->next_used;
	bool seen[RING] = { 0 };

	assert_int_equal((uint16_t)(ring->used->idx - first), world->offered);
	for (uint32_t i = 0; i < world->offered; i++) {
		uint32_t id = ring->used->ring[(uint16_t)(first + i) % RING].id;

		assert_true(id < RING && !seen[id]);
		seen[id] = true;
	}
	for (uint32_t i = 0; i < RING; i++)
		assert_int_equal(queue(world, REQUEST)->desc[i].inflight, 0);
	assert_int_equal(queue(world, REQUEST)->used_idx, ring->used->idx);
	assert_true(driver_signalled(ring->call));
}

static void take_over_and_end(struct world *world)
{
	driver_take_over(world->driver);
	start_rings(world);
	serve(world);
	assert_each_used_once(world);
	end_world(world);
}

static void offer_mixture(struct world *world, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		if (i % 3 == 1)
			offer_slow(world, i);
		else
			offer_read(world);
}

static void test_killed_at_any_store_each_chain_is_used_once(void **state)
{
	static const uint16_t firsts[] = { 0, 65533 };
	bool reached = true;

	(void)state;
	for (uint32_t i = 0; i < COUNT(firsts); i++, reached = true)
		for (long point = 0; reached; point++) {
			struct world world = new_world(firsts[i]);

			offer_mixture(&world, 7);
			reached = killed_at(&world, point);
			take_over_and_end(&world);
			assert_true(reached ||
				    point >= 6 * 7); /* marked, counted, pushed, linked, head, wiped: of each chain */
		}
}

static void test_killed_again_while_it_makes_good_each_chain_is_used_once(void **state)
{
	bool reached = true, reached_again;

	(void)state;
	for (long point = 0; reached; point += 4) {
		reached_again = true;
		for (long again = point / 4 % 3; reached && reached_again; again += 3) {
			struct world world = new_world(65535);

			offer_mixture(&world, 3);
			reached = killed_at(&world, point);
			reached_again = killed_at(&world, again);
			take_over_and_end(&world);
		}
	}
}

static void test_what_was_fetched_first_is_fetched_again_first(void **state)
{
	struct world world = new_world(0);
	vs_notice notice;

	(void)state;
	world.driver->rings[REQUEST].next_desc = 9; /* so that heads are no order */
	start_rings(&world);
	for (uint64_t tag = 0; tag < 9; tag++)
		offer_slow(&world, tag);
	driver_run(world.driver);
	assert_int_equal(driver_counters(world.driver, REQUEST).in_flight, 9);
	/* a process that took it over from this one, which goes on here only so that nothing leaks */
	for (unsigned process = 0; process < 2; process++) {
		struct vs_device *old = world.driver->device;
		vs_completion completions[9];

		for (unsigned i = 0; i < 9; i++) {
			struct virtio_scsi_cmd_req header;

			assert_true(driver_notice(world.driver, &notice));
			memcpy(&header, notice.header, sizeof(header));
			assert_int_equal(header.tag, i);
			completions[i] = (vs_completion){ .request = notice.request, .response_length = RESPONSE };
		}
		if (process) {
			assert_int_equal(driver_counters(world.driver, REQUEST).resumed, 9);
			assert_int_equal(vs_complete(old, completions, 9), 0);
			break;
		}
		vs_vring_break(old, REQUEST);
		assert_int_equal(vs_complete(old, completions, 9), 0);
		driver_take_over(world.driver);
		start_rings(&world);
		driver_run(world.driver);
	}
	assert_each_used_once(&world);
	end_world(&world);
}

static void test_the_region_says_what_the_specification_says(void **state)
{
	struct world world = new_world(5);
	const struct split_queue *found = queue(&world, REQUEST);
	vs_notice notice;

	(void)state;
	start_rings(&world);
	assert_int_equal(found->version, 1);
	assert_int_equal(found->desc_num, RING);
	assert_int_equal(found->used_idx, 5);
	offer_slow(&world, 1);
	offer_slow(&world, 2);
	driver_run(world.driver);
	assert_int_equal(found->desc[0].inflight, 1);
	assert_int_equal(found->desc[1].inflight, 1);
	assert_true(found->desc[1].counter == found->desc[0].counter + 1);
	assert_true(driver_notice(world.driver, &notice));
	vs_completion completion = { .request = notice.request, .response_length = RESPONSE };
	assert_int_equal(vs_complete(world.driver->device, &completion, 1), 0);
	assert_int_equal(found->desc[0].inflight, 0);
	assert_int_equal(found->last_batch_head, 0);
	assert_int_equal(found->used_idx, 6);
	assert_int_equal(found->desc[1].inflight, 1);
	serve(&world);
	end_world(&world);
}

static void test_a_region_that_lies_hurts_only_its_ring(void **state)
{
	(void)state;
	for (uint32_t seed = 1; seed < 100; seed++) {
		struct world world = new_world(0);

		srand(seed);
		for (uint64_t i = 0; i < world.size; i++)
			world.bytes[i] = (uint8_t)(rand() % 3 ? rand() : rand() % 2);
		queue(&world, REQUEST)->version = 1;
		offer_mixture(&world, 5);
		start_rings(&world);
		serve(&world);
		end_world(&world);
	}
}

static void test_a_region_that_is_too_small_or_comes_too_late_is_refused(void **state)
{
	struct world world = new_world(0);
	vs_device *device = world.driver->device;
	uint32_t rings = world.driver->setup.rings;

	(void)state;
	assert_int_equal(vs_device_set_inflight(device, world.fd, world.size - 1, 0, rings, RING), -EINVAL);
	assert_int_equal(vs_device_set_inflight(device, world.fd, world.size, 0, rings, 0), -EINVAL);
	assert_int_equal(vs_device_set_inflight(device, world.fd, world.size, 0, 0, RING), -EINVAL);
	assert_int_equal(vs_device_set_inflight(device, world.fd, world.size, PAGE, rings, RING), -EFBIG);
	assert_int_equal(vs_device_set_inflight(device, world.fd, world.size, UINT64_MAX, rings, RING), -EFBIG);
	assert_int_equal(vs_device_set_inflight(device, world.fd, world.size, 0, rings, UINT32_MAX), -EINVAL);
	start_rings(&world);
	assert_int_equal(vs_device_set_inflight(device, world.fd, world.size, 0, rings, RING), -EBUSY);
	end_world(&world);
}

static void test_a_head_that_is_offered_twice_breaks_the_ring(void **state)
{
	struct world world = new_world(0);

	(void)state;
	start_rings(&world);
	offer_slow(&world, 1);
	driver_run(world.driver);
	driver_offer(world.driver, REQUEST, 0);
	driver_run(world.driver);
	assert_true(driver_broken(world.driver, REQUEST));
	serve(&world);
	end_world(&world);
}

static void test_a_ring_larger_than_the_region_says_runs_without_it(void **state)
{
	struct world world = new_world(0);
	struct driver *driver = world.driver;
	uint32_t rings = driver->setup.rings;

	(void)state;
	assert_int_equal(vs_device_set_inflight(driver->device, world.fd, world.size, 0, rings, RING / 2), 0);
	for (uint32_t i = 0; i < rings; i++)
		driver_start_ring(driver, i);
	offer_mixture(&world, 6);
	serve(&world);
	assert_int_equal((uint16_t)driver->rings[REQUEST].used->idx, 6);
	for (uint64_t i = 0; i < world.size; i++)
		assert_int_equal(world.bytes[i], 0);
	end_world(&world);
}

static void test_what_is_owed_when_a_ring_stops_is_served_first(void **state)
{
	struct world world = new_world(0);
	struct driver *driver = world.driver;

	(void)state;
	offer_mixture(&world, 3);
	assert_true(killed_at(&world, 6)); /* three are fetched by then, none is used */
	driver_take_over(driver);
	start_rings(&world);
	assert_int_equal(vs_vring_enable(driver->device, REQUEST, 0), 0);
	assert_int_equal(vs_vring_stop(driver->device, REQUEST), 0);
	serve(&world);
	assert_int_equal(vs_vring_in_flight(driver->device, REQUEST), 0);
	assert_int_equal(vs_vring_base(driver->device, REQUEST), driver->rings[REQUEST].used->idx);
	assert_true(driver->rings[REQUEST].used->idx > 0);
	end_world(&world);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_killed_at_any_store_each_chain_is_used_once),
		cmocka_unit_test(test_killed_again_while_it_makes_good_each_chain_is_used_once),
		cmocka_unit_test(test_what_was_fetched_first_is_fetched_again_first),
		cmocka_unit_test(test_the_region_says_what_the_specification_says),
		cmocka_unit_test(test_a_region_that_lies_hurts_only_its_ring),
		cmocka_unit_test(test_a_region_that_is_too_small_or_comes_too_late_is_refused),
		cmocka_unit_test(test_a_head_that_is_offered_twice_breaks_the_ring),
		cmocka_unit_test(test_a_ring_larger_than_the_region_says_runs_without_it),
		cmocka_unit_test(test_what_is_owed_when_a_ring_stops_is_served_first),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
