/*
 * test_ring.c - descriptor chains of honest drivers, in every shape (test_lying_ring.c has the others), and when they are
 * told of answers, by a clock that only goes on when it is looked at.
 */
#define _GNU_SOURCE
#include "commands.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { HEADER = sizeof(struct virtio_scsi_cmd_req), RESPONSE = sizeof(struct virtio_scsi_cmd_resp) };

static const struct setup plain = { .features = FEATURE(INDIRECT) };
static _Atomic long look_ns, clock_ns; /* the loop looks too */

int clock_gettime(clockid_t id, struct timespec *now)
{
	(void)id;
	long ns = atomic_fetch_add(&clock_ns, look_ns) + look_ns;
	*now = (struct timespec){ .tv_sec = 1 + ns / 1000000000, .tv_nsec = ns % 1000000000 };
	return 0;
}

/* Cuts [guest, guest + length) into `pieces` buffers of about the same length. */
static uint32_t cut(struct buffer *to, uint64_t guest, uint32_t length, uint32_t pieces, bool writable)
{
	for (uint32_t i = 0, at = 0; i < pieces; i++) {
		uint32_t end = (uint32_t)((uint64_t)length * (i + 1) / pieces);

		to[i] = (struct buffer){ guest + at, end - at, writable };
		at = end;
	}
	return pieces;
}

static void assert_pattern_at(struct driver *driver, uint64_t guest, uint64_t offset, uint32_t length)
{
	uint8_t *bytes = malloc(length);

	assert_non_null(bytes);
	driver_read(driver, guest, bytes, length);
	for (uint32_t i = 0; i < length; i++)
		if (bytes[i] != pattern(offset + i))
			fail_msg("byte %u of the data is %02x, not %02x", i, bytes[i], pattern(offset + i));
	free(bytes);
}

/* One READ (10) of 4 KiB whose header lies in `headers` descriptors, response and data together in `ins`. */
static void read_in_shape(bool indirect, uint32_t headers, uint32_t ins)
{
	struct driver *driver =
		driver_with_disk(ON_MEMORY, (struct setup){ .features = FEATURE(INDIRECT), .ring_size = 1024 });
	struct buffer buffers[MOST_BUFFERS];
	struct vring_used_elem used;
	uint64_t header = new_header(driver, read_10(8, 8), 7);
	uint64_t in = driver_allocate(driver, 0, RESPONSE + PAGE, 8);
	uint32_t count = cut(buffers, header, HEADER, headers, false);

	count += cut(buffers + count, in, RESPONSE + PAGE, ins, true);
	driver_offer(driver, REQUEST, (indirect ? driver_indirect : driver_chain)(driver, REQUEST, buffers, count));
	driver_run(driver);
	if (!driver_used(driver, REQUEST, &used))
		fail_msg("no answer to %u + %u descriptors%s", headers, ins, indirect ? ", indirect" : "");
	assert_int_equal(used.len, RESPONSE + PAGE);
	assert_pattern_at(driver, in + RESPONSE, 8 * BLOCK, PAGE);
	driver_free(driver);
}

static void test_header_response_and_data_may_be_cut_anywhere(void **state)
{
	static const uint32_t counts[] = { 1, 2, 3, 5, 6, 7, 8, 9, 15, 31, 32, 33 };

	(void)state;
	for (uint32_t i = 0; i < COUNT(counts); i++)
		for (uint32_t indirect = 0; indirect < 2; indirect++) {
			read_in_shape(indirect, counts[i], 1);
			read_in_shape(indirect, 1, counts[i]);
			read_in_shape(indirect, counts[i], counts[i]);
		}
}

static void test_a_header_of_one_byte_per_descriptor_is_read(void **state)
{
	(void)state;
	read_in_shape(false, HEADER, 2);
	read_in_shape(true, HEADER, 2);
}

static void test_a_chain_of_515_descriptors_is_served_by_a_small_ring_through_a_table(void **state)
{
	(void)state;
	read_in_shape(true, 1, 514);
}

static void test_data_that_crosses_regions_is_moved_whole(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ .regions = 3 });
	/* begins 700 bytes before the second region, and one buffer covers a border by itself */
	struct buffer in = { REGION_SIZE - 700, 8192, true }, out = { 2 * REGION_SIZE - 100, 512, false };

	(void)state;
	assert_good(command(driver, read_10(0, 16), NULL, 0, &in, 1), RESPONSE + 8192);
	assert_pattern_at(driver, in.guest, 0, 8192);
	driver_write(driver, out.guest, "crosses", 7);
	assert_good(command(driver, write_10(3, 1), &out, 1, NULL, 0), RESPONSE);
	uint8_t block[BLOCK];
	assert_int_equal(vs_volume_read(driver->volume, 3 * BLOCK, block, BLOCK), 0);
	assert_memory_equal(block, "crosses", 7);
	driver_free(driver);
}

static void test_an_indirect_table_may_cross_regions(void **state)
{
	(void)state;
	/* 8: an entry lies across the border; 16 and 32: entries meet at it */
	for (uint32_t before = 8; before <= 40; before += 8) {
		struct setup setup = { .features = FEATURE(INDIRECT), .regions = 2 };
		struct driver *driver = driver_with_disk(ON_MEMORY, setup);
		struct buffer in = data_in(driver, PAGE);
		struct buffer buffers[] = { { new_header(driver, read_10(0, 8), 1), HEADER, false },
					    { new_response(driver), RESPONSE, true },
					    in };
		struct vring_used_elem used;

		driver_offer(driver, REQUEST, driver_indirect_at(driver, REQUEST, REGION_SIZE - before, buffers, 3));
		driver_run(driver);
		assert_true(driver_used(driver, REQUEST, &used));
		assert_pattern_at(driver, in.guest, 0, PAGE);
		driver_free(driver);
	}
}

static void test_rings_wrap_around_for_ever(void **state)
{
	struct driver *driver = driver_with_disk(ON_NULL, (struct setup){ .ring_size = 4 });
	struct buffer in = data_in(driver, BLOCK);
	struct buffer buffers[] = { { new_header(driver, read_10(0, 1), 1), HEADER, false },
				    { new_response(driver), RESPONSE, true },
				    in };
	struct vring_used_elem used;

	(void)state;
	for (uint32_t i = 0; i < 70000; i++) { /* more than 2^16: the indices wrap too */
		uint16_t head = driver_chain(driver, REQUEST, buffers, 3);

		driver_offer(driver, REQUEST, head);
		vs_device_step(driver->device);
		if (!driver_used(driver, REQUEST, &used) || used.id != head)
			fail_msg("chain %u was not answered", i);
	}
	driver_free(driver);
}

/* A driver that sleeps, and has 16 reads in the ring. */
static struct driver *with_a_full_batch(void)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ .ring_size = 128 });

	for (uint32_t i = 0; i < 16; i++) {
		struct buffer buffers[] = { { new_header(driver, read_10(i, 1), i), HEADER, false },
					    { new_response(driver), RESPONSE, true },
					    data_in(driver, BLOCK) };
		driver_offer(driver, REQUEST, driver_chain(driver, REQUEST, buffers, 3));
	}
	return driver;
}

static uint32_t used_elements(struct driver *driver)
{
	struct vring_used_elem used;
	uint32_t count = 0;

	while (driver_used(driver, REQUEST, &used))
		count++;
	return count;
}

static void test_a_full_batch_is_answered_with_one_interrupt(void **state)
{
	struct driver *driver = with_a_full_batch();

	(void)state;
	driver_run(driver);
	assert_int_equal(used_elements(driver), 16);
	uint64_t calls = 0;
	assert_int_equal(read(driver->rings[REQUEST].call, &calls, sizeof(calls)), sizeof(calls));
	assert_int_equal(calls, 1);
	driver_free(driver);
}

static void test_a_driver_that_sleeps_is_told_of_slow_answers_while_there_is_work_left(void **state)
{
	struct driver *driver = with_a_full_batch();

	(void)state;
	look_ns = 20000;
	vs_device_step(driver->device);
	look_ns = 0;
	uint32_t count = used_elements(driver);
	assert_in_range(count, 8, 15); /* few enough to leave some, more than an interrupt is worth */
	assert_true(driver_signalled(driver->rings[REQUEST].call));
	driver_run(driver);
	assert_int_equal(count + used_elements(driver), 16);
	driver_free(driver);
}

/* ---- interrupts wanted and not ---- */

static struct answer read_one(struct driver *driver)
{
	struct buffer in = data_in(driver, BLOCK);

	return command(driver, read_10(0, 1), NULL, 0, &in, 1);
}

static void test_no_interrupt_flag_is_obeyed_without_event_index(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, plain);
	struct ring *ring = &driver->rings[REQUEST];

	(void)state;
	ring->avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
	assert_good(read_one(driver), RESPONSE + BLOCK);
	assert_false(driver_signalled(ring->call));
	ring->avail->flags = 0;
	assert_good(read_one(driver), RESPONSE + BLOCK);
	assert_true(driver_signalled(ring->call));
	driver_free(driver);
}

static void test_event_index_names_the_completion_that_interrupts(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ .features = FEATURE(EVENT_IDX) });
	struct ring *ring = &driver->rings[REQUEST];
	struct vring vring = { .num = ring->size, .avail = ring->avail };

	(void)state;
	vring_used_event(&vring) = 1;
	ring->avail->flags = VRING_AVAIL_F_NO_INTERRUPT; /* means nothing with EVENT_IDX */
	assert_good(read_one(driver), RESPONSE + BLOCK);
	assert_false(driver_signalled(ring->call));
	assert_good(read_one(driver), RESPONSE + BLOCK);
	assert_true(driver_signalled(ring->call));
	assert_good(read_one(driver), RESPONSE + BLOCK);
	assert_false(driver_signalled(ring->call));
	driver_free(driver);
}

/* Whether the device wants to be kicked for the next chain: as virtio 1.2, 2.7.10 has a driver decide. */
static bool wants_kick(const struct ring *ring, bool event_index)
{
	const struct vring vring = { .num = ring->size, .used = ring->used };

	if (event_index)
		return __atomic_load_n(&vring_avail_event(&vring), __ATOMIC_SEQ_CST) == ring->next_avail;
	return !(__atomic_load_n(&ring->used->flags, __ATOMIC_SEQ_CST) & VRING_USED_F_NO_NOTIFY);
}

static void test_a_resting_device_asks_for_a_kick(void **state)
{
	(void)state;
	for (int event_index = 0; event_index < 2; event_index++) {
		struct setup setup = { .features = event_index ? FEATURE(EVENT_IDX) : 0, .threads = 1 };
		struct driver *driver = driver_with_disk(ON_MEMORY, setup);
		struct ring *ring = &driver->rings[REQUEST];

		for (uint32_t turn = 0; turn < 100; turn++) {
			struct buffer buffers[] = { { new_header(driver, read_10(0, 1), 1), HEADER, false },
						    { new_response(driver), RESPONSE, true },
						    data_in(driver, BLOCK) };
			struct vring_used_elem used;

			for (uint32_t tries = 0; !wants_kick(ring, event_index); tries++) {
				assert_true(tries < 100000);
				usleep(100);
			}
			driver_offer(driver, REQUEST, driver_chain(driver, REQUEST, buffers, 3));
			driver_kick(driver, REQUEST);
			assert_true(driver_wait(driver, REQUEST));
			assert_true(driver_used(driver, REQUEST, &used));
		}
		driver_free(driver);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_header_response_and_data_may_be_cut_anywhere),
		cmocka_unit_test(test_a_header_of_one_byte_per_descriptor_is_read),
		cmocka_unit_test(test_a_chain_of_515_descriptors_is_served_by_a_small_ring_through_a_table),
		cmocka_unit_test(test_data_that_crosses_regions_is_moved_whole),
		cmocka_unit_test(test_an_indirect_table_may_cross_regions),
		cmocka_unit_test(test_rings_wrap_around_for_ever),
		cmocka_unit_test(test_a_full_batch_is_answered_with_one_interrupt),
		cmocka_unit_test(test_a_driver_that_sleeps_is_told_of_slow_answers_while_there_is_work_left),
		cmocka_unit_test(test_no_interrupt_flag_is_obeyed_without_event_index),
		cmocka_unit_test(test_event_index_names_the_completion_that_interrupts),
		cmocka_unit_test(test_a_resting_device_asks_for_a_kick),
	};

	return cmocka_run_group_tests_name("ring", tests, NULL, NULL);
}
