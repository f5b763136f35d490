/*
 * test_lying_ring.c - lies of every kind in descriptor chains. Each breaks its own ring for good, signals that ring's error
 * descriptor, and harms nothing else.
 */
#define _GNU_SOURCE
#include "commands.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { HEADER = sizeof(struct virtio_scsi_cmd_req), RESPONSE = sizeof(struct virtio_scsi_cmd_resp) };

static const struct setup plain = { .features = FEATURE(INDIRECT) };

/* A driver with two request rings; `lie` spoils ring 2, which must break alone and stay broken. */
struct lie {
	struct driver *driver;
	struct buffer buffers[3]; /* an honest READ (10) of a block */
	struct ring *ring;
};

static struct lie begin_lie(struct setup setup)
{
	struct lie lie = { 0 };

	setup.rings = 4;
	lie.driver = driver_with_disk(ON_MEMORY, setup);
	lie.buffers[0] = (struct buffer){ new_header(lie.driver, read_10(0, 1), 1), HEADER, false };
	lie.buffers[1] = (struct buffer){ new_response(lie.driver), RESPONSE, true };
	lie.buffers[2] = data_in(lie.driver, BLOCK);
	lie.ring = &lie.driver->rings[REQUEST];
	return lie;
}

static void end_lie(struct lie *lie)
{
	struct driver *driver = lie->driver;
	struct vring_used_elem used;
	vs_notice notice;

	driver_run(driver);
	assert_true(driver_broken(driver, REQUEST));
	assert_true(driver_signalled(lie->ring->error));
	assert_false(driver_used(driver, REQUEST, &used));
	assert_true(driver_notice(driver, &notice));
	assert_int_equal(notice.kind, VS_NOTICE_BROKEN);
	assert_int_equal(notice.vring, REQUEST);
	/* for good: an honest chain now changes nothing */
	driver_offer(driver, REQUEST, driver_chain(driver, REQUEST, lie->buffers, 3));
	driver_kick(driver, REQUEST);
	driver_run(driver);
	assert_false(driver_used(driver, REQUEST, &used));
	assert_false(driver_signalled(lie->ring->error));
	assert_int_equal(vs_vring_in_flight(driver->device, REQUEST), 0);
	/* and nothing else: the next ring works */
	assert_false(driver_broken(driver, REQUEST + 1));
	struct buffer in = data_in(driver, BLOCK);
	assert_good(command_on(driver, REQUEST + 1, read_10(0, 1), NULL, 0, &in, 1), RESPONSE + BLOCK);
	driver_free(driver);
}

/* Offers the honest chain after `spoil` changed the descriptor that it names. */
static void offer_spoiled(struct lie *lie, uint32_t at, struct vring_desc bits)
{
	uint16_t head = driver_chain(lie->driver, REQUEST, lie->buffers, 3);
	struct vring_desc *desc = &lie->ring->desc[(head + at) % lie->ring->size];

	desc->addr ^= bits.addr;
	desc->len ^= bits.len;
	desc->flags ^= bits.flags;
	desc->next ^= bits.next;
	driver_offer(lie->driver, REQUEST, head);
}

static void test_a_loop_of_descriptors_breaks_the_ring(void **state)
{
	struct lie lie = begin_lie(plain);
	uint16_t head = driver_chain(lie.driver, REQUEST, lie.buffers, 3);

	(void)state;
	lie.ring->desc[head + 2].flags |= VRING_DESC_F_NEXT;
	lie.ring->desc[head + 2].next = (uint16_t)(head + 1);
	driver_offer(lie.driver, REQUEST, head);
	end_lie(&lie);
}

static void test_a_descriptor_that_follows_itself_breaks_the_ring(void **state)
{
	struct lie lie = begin_lie(plain);

	(void)state;
	lie.ring->desc[0] = (struct vring_desc){ lie.buffers[0].guest, 1, VRING_DESC_F_NEXT, 0 };
	driver_offer(lie.driver, REQUEST, 0);
	end_lie(&lie);
}

static void test_a_zero_length_descriptor_breaks_the_ring(void **state)
{
	(void)state;
	for (uint32_t at = 0; at < 3; at++) {
		struct lie lie = begin_lie(plain);

		lie.buffers[at].length = 0;
		driver_offer(lie.driver, REQUEST, driver_chain(lie.driver, REQUEST, lie.buffers, 3));
		lie.buffers[at].length = BLOCK;
		end_lie(&lie);
	}
}

static void test_an_address_outside_guest_memory_breaks_the_ring(void **state)
{
	static const uint64_t addresses[] = { REGION_SIZE, REGION_SIZE - 1, 1ull << 40, UINT64_MAX, UINT64_MAX - 20 };

	(void)state;
	for (uint32_t i = 0; i < COUNT(addresses); i++)
		for (uint32_t at = 0; at < 3; at++) {
			struct lie lie = begin_lie(plain);
			uint64_t honest = lie.buffers[at].guest;

			offer_spoiled(&lie, at, (struct vring_desc){ .addr = honest ^ addresses[i] });
			end_lie(&lie);
		}
}

static void test_a_length_past_the_end_of_guest_memory_breaks_the_ring(void **state)
{
	static const uint32_t lengths[] = { REGION_SIZE, 0x7fffffff, 0xffffffff };

	(void)state;
	for (uint32_t i = 0; i < COUNT(lengths); i++)
		for (uint32_t at = 0; at < 3; at++) {
			struct lie lie = begin_lie(plain);

			offer_spoiled(&lie, at, (struct vring_desc){ .len = lie.buffers[at].length ^ lengths[i] });
			end_lie(&lie);
		}
}

static void test_a_buffer_over_a_hole_between_regions_breaks_the_ring(void **state)
{
	struct lie lie = begin_lie((struct setup){ .regions = 2, .apart = true });

	(void)state;
	lie.buffers[2] = (struct buffer){ REGION_SIZE - 256, BLOCK, true };
	driver_offer(lie.driver, REQUEST, driver_chain(lie.driver, REQUEST, lie.buffers, 3));
	lie.buffers[2].guest = PAGE;
	end_lie(&lie);
}

static void test_readable_after_writable_breaks_the_ring(void **state)
{
	struct lie lie = begin_lie(plain);

	(void)state;
	offer_spoiled(&lie, 2, (struct vring_desc){ .flags = VRING_DESC_F_WRITE });
	end_lie(&lie);
}

static void test_a_next_index_past_the_table_breaks_the_ring(void **state)
{
	struct lie lie = begin_lie(plain);

	(void)state;
	offer_spoiled(&lie, 0, (struct vring_desc){ .next = 1 ^ 64 });
	end_lie(&lie);
}

static void test_a_head_past_the_table_breaks_the_ring(void **state)
{
	static const uint16_t heads[] = { 64, 65, 0x8000, 0xffff };

	(void)state;
	for (uint32_t i = 0; i < COUNT(heads); i++) {
		struct lie lie = begin_lie(plain);

		driver_offer(lie.driver, REQUEST, heads[i]);
		end_lie(&lie);
	}
}

static void test_an_avail_index_that_jumps_further_than_the_ring_breaks_it(void **state)
{
	static const uint16_t jumps[] = { 65, 0x7fff, 0x8000, 0xffff };

	(void)state;
	for (uint32_t i = 0; i < COUNT(jumps); i++) {
		struct lie lie = begin_lie(plain);

		driver_chain(lie.driver, REQUEST, lie.buffers, 3);
		lie.ring->avail->idx = jumps[i];
		driver_run(lie.driver);
		lie.ring->next_avail = 0; /* what end_lie() offers is an honest index again */
		end_lie(&lie);
	}
}

static void test_a_chain_without_a_writable_descriptor_breaks_the_ring(void **state)
{
	struct lie lie = begin_lie(plain);

	(void)state;
	driver_offer(lie.driver, REQUEST, driver_chain(lie.driver, REQUEST, lie.buffers, 1));
	end_lie(&lie);
}

static void test_a_chain_without_a_readable_descriptor_breaks_the_ring(void **state)
{
	struct lie lie = begin_lie(plain);

	(void)state;
	driver_offer(lie.driver, REQUEST, driver_chain(lie.driver, REQUEST, lie.buffers + 1, 2));
	end_lie(&lie);
}

static void test_a_short_header_breaks_the_ring(void **state)
{
	static const uint32_t lengths[] = { 1, 18, 19, 50 };

	(void)state;
	for (uint32_t i = 0; i < COUNT(lengths); i++) {
		struct lie lie = begin_lie(plain);

		lie.buffers[0].length = lengths[i];
		driver_offer(lie.driver, REQUEST, driver_chain(lie.driver, REQUEST, lie.buffers, 3));
		lie.buffers[0].length = HEADER;
		end_lie(&lie);
	}
}

static void test_a_response_that_is_too_small_breaks_the_ring(void **state)
{
	static const uint32_t lengths[] = { 1, 11, 12, 107 };

	(void)state;
	for (uint32_t i = 0; i < COUNT(lengths); i++) {
		struct lie lie = begin_lie(plain);

		lie.buffers[1].length = lengths[i];
		driver_offer(lie.driver, REQUEST, driver_chain(lie.driver, REQUEST, lie.buffers, 2));
		lie.buffers[1].length = RESPONSE;
		end_lie(&lie);
	}
}

/* ---- lying tables ---- */

static void spoil_table(uint32_t length, uint16_t extra_flags, struct vring_desc bits, uint32_t at)
{
	struct lie lie = begin_lie(plain);
	uint64_t table = driver_allocate(lie.driver, 0, 16 * 16, 16);
	uint16_t head = driver_indirect_at(lie.driver, REQUEST, table, lie.buffers, 3);
	struct vring_desc *entry = (struct vring_desc *)driver_host(lie.driver, table) + at;

	entry->flags ^= bits.flags;
	entry->next ^= bits.next;
	entry->addr ^= bits.addr;
	if (length != 48)
		lie.ring->desc[head].len = length;
	lie.ring->desc[head].flags |= extra_flags;
	driver_offer(lie.driver, REQUEST, head);
	end_lie(&lie);
}

static void test_a_table_whose_length_is_no_multiple_of_16_breaks_the_ring(void **state)
{
	static const uint32_t lengths[] = { 0, 1, 15, 47, 49, 0xffffffff };

	(void)state;
	for (uint32_t i = 0; i < COUNT(lengths); i++)
		spoil_table(lengths[i], 0, (struct vring_desc){ 0 }, 0);
}

static void test_a_table_that_ends_before_its_chain_breaks_the_ring(void **state)
{
	(void)state;
	spoil_table(32, 0, (struct vring_desc){ 0 }, 0);
}

static void test_indirect_with_next_breaks_the_ring(void **state)
{
	(void)state;
	spoil_table(48, VRING_DESC_F_NEXT, (struct vring_desc){ 0 }, 0);
}

static void test_a_table_inside_a_table_breaks_the_ring(void **state)
{
	(void)state;
	for (uint32_t at = 0; at < 3; at++)
		spoil_table(48, 0, (struct vring_desc){ .flags = VRING_DESC_F_INDIRECT }, at);
}

static void test_a_loop_in_a_table_breaks_the_ring(void **state)
{
	(void)state;
	spoil_table(48, 0, (struct vring_desc){ .flags = VRING_DESC_F_NEXT, .next = 2 }, 2);
}

static void test_a_next_index_past_the_end_of_a_table_breaks_the_ring(void **state)
{
	(void)state;
	spoil_table(48, 0, (struct vring_desc){ .next = 1 ^ 3 }, 0);
	spoil_table(48, 0, (struct vring_desc){ .next = 1 ^ 0xffff }, 0);
}

static void test_a_table_outside_guest_memory_breaks_the_ring(void **state)
{
	static const uint64_t tables[] = { REGION_SIZE, REGION_SIZE - 8, REGION_SIZE - 40, UINT64_MAX - 15,
					   UINT64_MAX };

	(void)state;
	for (uint32_t i = 0; i < COUNT(tables); i++) {
		struct lie lie = begin_lie(plain);
		uint16_t head = driver_indirect(lie.driver, REQUEST, lie.buffers, 3);

		lie.ring->desc[head].addr = tables[i];
		driver_offer(lie.driver, REQUEST, head);
		end_lie(&lie);
	}
}

static void test_a_table_without_the_feature_breaks_the_ring(void **state)
{
	struct lie lie = begin_lie((struct setup){ .features = 0 });

	(void)state;
	driver_offer(lie.driver, REQUEST, driver_indirect(lie.driver, REQUEST, lie.buffers, 3));
	end_lie(&lie);
}

static void test_a_table_of_too_many_descriptors_breaks_the_ring(void **state)
{
	struct lie lie = begin_lie(plain);
	struct buffer *many = calloc(MOST_BUFFERS, sizeof(*many));

	(void)state;
	assert_non_null(many);
	many[0] = lie.buffers[0];
	many[1] = lie.buffers[1];
	for (uint32_t i = 2; i < MOST_BUFFERS; i++)
		many[i] = (struct buffer){ lie.buffers[2].guest, 1, true };
	driver_offer(lie.driver, REQUEST, driver_indirect(lie.driver, REQUEST, many, MOST_BUFFERS));
	end_lie(&lie);
	free(many);
}

static void test_a_head_that_is_offered_again_before_it_was_used_breaks_the_ring(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ .ring_size = 4 });
	struct buffer buffers[] = { { new_header(driver, test_unit_ready(), 1), 51, false },
				    { new_response(driver), sizeof(struct virtio_scsi_cmd_resp), true } };
	uint16_t head = driver_chain(driver, REQUEST, buffers, COUNT(buffers));
	vs_completion completions[4] = { 0 };
	vs_notice notice;

	(void)state;
	for (uint32_t i = 0; i < 4; i++)
		driver_offer(driver, REQUEST, head);
	driver_run(driver);
	assert_false(driver_broken(driver, REQUEST));
	driver_offer(driver, REQUEST, head);
	driver_run(driver);
	assert_true(driver_broken(driver, REQUEST));
	assert_int_equal(driver_counters(driver, REQUEST).in_flight, 4);
	for (uint32_t i = 0; i < 4; i++) {
		assert_true(driver_notice(driver, &notice));
		completions[i].request = notice.request;
	}
	assert_int_equal(vs_complete(driver->device, completions, 4), 0);
	assert_int_equal(driver_counters(driver, REQUEST).in_flight, 0);
	driver_free(driver);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_loop_of_descriptors_breaks_the_ring),
		cmocka_unit_test(test_a_descriptor_that_follows_itself_breaks_the_ring),
		cmocka_unit_test(test_a_zero_length_descriptor_breaks_the_ring),
		cmocka_unit_test(test_an_address_outside_guest_memory_breaks_the_ring),
		cmocka_unit_test(test_a_length_past_the_end_of_guest_memory_breaks_the_ring),
		cmocka_unit_test(test_a_buffer_over_a_hole_between_regions_breaks_the_ring),
		cmocka_unit_test(test_readable_after_writable_breaks_the_ring),
		cmocka_unit_test(test_a_next_index_past_the_table_breaks_the_ring),
		cmocka_unit_test(test_a_head_past_the_table_breaks_the_ring),
		cmocka_unit_test(test_an_avail_index_that_jumps_further_than_the_ring_breaks_it),
		cmocka_unit_test(test_a_chain_without_a_writable_descriptor_breaks_the_ring),
		cmocka_unit_test(test_a_chain_without_a_readable_descriptor_breaks_the_ring),
		cmocka_unit_test(test_a_short_header_breaks_the_ring),
		cmocka_unit_test(test_a_response_that_is_too_small_breaks_the_ring),
		cmocka_unit_test(test_a_table_whose_length_is_no_multiple_of_16_breaks_the_ring),
		cmocka_unit_test(test_a_table_that_ends_before_its_chain_breaks_the_ring),
		cmocka_unit_test(test_indirect_with_next_breaks_the_ring),
		cmocka_unit_test(test_a_table_inside_a_table_breaks_the_ring),
		cmocka_unit_test(test_a_loop_in_a_table_breaks_the_ring),
		cmocka_unit_test(test_a_next_index_past_the_end_of_a_table_breaks_the_ring),
		cmocka_unit_test(test_a_table_outside_guest_memory_breaks_the_ring),
		cmocka_unit_test(test_a_table_without_the_feature_breaks_the_ring),
		cmocka_unit_test(test_a_table_of_too_many_descriptors_breaks_the_ring),
		cmocka_unit_test(test_a_head_that_is_offered_again_before_it_was_used_breaks_the_ring),
	};

	return cmocka_run_group_tests_name("lying ring", tests, NULL, NULL);
}
