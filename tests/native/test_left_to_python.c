/*
 * test_left_to_python.c - commands that look like the fast path's and are not: it hands them over untouched.
 */
#define _GNU_SOURCE
#include "commands.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RESPONSE = sizeof(struct virtio_scsi_cmd_resp) };

static const struct setup inline_io = { 0 };
static const struct setup with_uring = { .io_uring = true };

static void finish(struct driver *driver, struct answer answer)
{
	vs_completion completion = { .request = answer.notice.request, .response_length = RESPONSE };
	struct vring_used_elem used;

	assert_slow(answer);
	assert_int_equal(vs_complete(driver->device, &completion, 1), 0);
	driver_run(driver);
	assert_true(driver_used(driver, REQUEST, &used));
}

static void test_ranges_past_the_last_block_are_left_to_python(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);
	struct buffer in = data_in(driver, 2 * BLOCK);
	const struct cdb cdbs[] = { read_10(DISK_BLOCKS - 1, 2), read_10(DISK_BLOCKS, 2),    read_10(UINT32_MAX, 2),
				    read_16(UINT64_MAX, 2),      read_16(UINT64_MAX - 1, 2), read_16(1ull << 55, 2),
				    read_16(0, UINT32_MAX) };

	(void)state;
	for (uint32_t i = 0; i < COUNT(cdbs); i++)
		finish(driver, command(driver, cdbs[i], NULL, 0, &in, 1));
	driver_free(driver);
}

static void test_buffers_of_another_length_than_the_transfer_are_left_to_python(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);
	struct buffer in = data_in(driver, 2 * BLOCK), out = data_out(driver, 2 * BLOCK, 1);

	(void)state;
	finish(driver, command(driver, read_10(0, 1), NULL, 0, &in, 1));
	finish(driver, command(driver, read_10(0, 3), NULL, 0, &in, 1));
	finish(driver, command(driver, read_10(0, 2), NULL, 0, NULL, 0));
	finish(driver, command(driver, read_10(0, 2), &out, 1, &in, 1));
	finish(driver, command(driver, write_10(0, 1), &out, 1, NULL, 0));
	finish(driver, command(driver, write_10(0, 3), &out, 1, NULL, 0));
	finish(driver, command(driver, read_10(0, 0), NULL, 0, NULL, 0));
	driver_free(driver);
}

static void test_bits_that_the_row_calls_slow_are_left_to_python(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);
	struct buffer in = data_in(driver, BLOCK);

	(void)state;
	for (uint32_t bit = 0; bit < 8; bit++) {
		struct cdb protect = read_10(0, 1), control = read_10(0, 1);

		protect.bytes[1] = (uint8_t)(1 << bit);
		control.bytes[9] = (uint8_t)(1 << bit);
		if (bit == 3 || bit == 4) /* FUA and DPO */
			assert_good(command(driver, protect, NULL, 0, &in, 1), RESPONSE + BLOCK);
		else
			finish(driver, command(driver, protect, NULL, 0, &in, 1));
		finish(driver, command(driver, control, NULL, 0, &in, 1));
	}
	driver_free(driver);
}

static void test_a_shut_gate_leaves_all_to_python(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);
	struct buffer in = data_in(driver, BLOCK), out = data_out(driver, BLOCK, 1);
	vs_lun_settings settings = open_lun();

	(void)state;
	settings.gate = VS_GATE_READ;
	assert_int_equal(vs_lun_set(driver->device, 0, 0, driver->volume, &settings), 0);
	assert_good(command(driver, read_10(0, 1), NULL, 0, &in, 1), RESPONSE + BLOCK);
	finish(driver, command(driver, write_10(0, 1), &out, 1, NULL, 0));
	finish(driver, command(driver, write_same_16(0, 1, false, true), NULL, 0, NULL, 0));
	finish(driver, command(driver, synchronize_cache_10(), NULL, 0, NULL, 0));
	settings.gate = VS_GATE_FLUSH;
	assert_int_equal(vs_lun_set(driver->device, 0, 0, driver->volume, &settings), 0);
	assert_good(command(driver, synchronize_cache_10(), NULL, 0, NULL, 0), RESPONSE);
	finish(driver, command(driver, read_10(0, 1), NULL, 0, &in, 1));
	settings.gate = VS_GATE_WRITE;
	assert_int_equal(vs_lun_set(driver->device, 0, 0, driver->volume, &settings), 0);
	finish(driver, command(driver, read_10(0, 1), NULL, 0, &in, 1));
	assert_good(command(driver, write_10(0, 1), &out, 1, NULL, 0), RESPONSE);
	settings.gate = 0;
	assert_int_equal(vs_lun_set(driver->device, 0, 0, driver->volume, &settings), 0);
	finish(driver, command(driver, read_10(0, 1), NULL, 0, &in, 1));
	finish(driver, command(driver, write_10(0, 1), &out, 1, NULL, 0));
	driver_free(driver);
}

static void test_limits_of_the_lun_are_kept(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);
	struct buffer in = data_in(driver, 9 * BLOCK);
	vs_lun_settings settings = open_lun();

	(void)state;
	settings.max_transfer = 8;
	settings.max_write_same = 8;
	assert_int_equal(vs_lun_set(driver->device, 0, 0, driver->volume, &settings), 0);
	finish(driver, command(driver, read_10(0, 9), NULL, 0, &in, 1));
	finish(driver, command(driver, write_same_16(0, 9, false, true), NULL, 0, NULL, 0));
	in.length = 8 * BLOCK;
	assert_good(command(driver, read_10(0, 8), NULL, 0, &in, 1), RESPONSE + 8 * BLOCK);
	driver_free(driver);
}

/* Offers READ (10) with a header changed by hand. */
static struct answer with_header(struct driver *driver, uint32_t at, uint8_t value)
{
	struct buffer in = data_in(driver, BLOCK);
	uint64_t header = new_header(driver, read_10(0, 1), 1), response = new_response(driver);
	struct buffer buffers[] = { { header, 51, false }, { response, RESPONSE, true }, in };
	struct vring_used_elem used;
	struct answer answer = { 0 };

	driver_write(driver, header + at, &value, 1);
	driver_offer(driver, REQUEST, driver_chain(driver, REQUEST, buffers, 3));
	driver_run(driver);
	answer.slow = driver_notice(driver, &answer.notice);
	answer.used = driver_used(driver, REQUEST, &used);
	answer.length = answer.used ? used.len : 0;
	driver_read(driver, response, &answer.response, sizeof(answer.response));
	return answer;
}

static void test_both_lun_formats_reach_the_lun_and_others_python(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);

	(void)state;
	assert_good(with_header(driver, 2, 0x40), RESPONSE + BLOCK);
	assert_good(with_header(driver, 2, 0x00), RESPONSE + BLOCK);
	finish(driver, with_header(driver, 2, 0x80)); /* logical unit addressing */
	finish(driver, with_header(driver, 2, 0xc0)); /* extended addressing */
	finish(driver, with_header(driver, 0, 0xc1)); /* well-known logical units */
	finish(driver, with_header(driver, 0, 0));
	finish(driver, with_header(driver, 1, 1)); /* another target */
	finish(driver, with_header(driver, 3, 1)); /* another LUN */
	driver_free(driver);
}

static void test_ordered_tasks_are_left_to_python(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);

	(void)state;
	for (uint8_t attribute = 1; attribute < 4; attribute++)
		finish(driver, with_header(driver, 16, attribute));
	driver_free(driver);
}

static void test_what_comes_behind_an_ordered_task_is_left_to_python_until_that_has_ended(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);
	struct buffer in = data_in(driver, BLOCK);

	(void)state;
	for (uint8_t attribute = 1; attribute < 4; attribute++) {
		struct answer first = with_header(driver, 16, attribute), second = with_header(driver, 16, attribute);

		finish(driver, command(driver, read_10(0, 1), NULL, 0, &in, 1));
		finish(driver, first);
		finish(driver, command(driver, read_10(0, 1), NULL, 0, &in, 1));
		finish(driver, second);
		assert_good(command(driver, read_10(0, 1), NULL, 0, &in, 1), RESPONSE + BLOCK);
	}
	driver_free(driver);
}

static void test_an_ordered_task_that_outlives_its_lun_lets_nothing_pass_another_at_that_address(void **state)
{
	const vs_lun_settings settings = open_lun();
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);
	struct buffer in = data_in(driver, BLOCK);
	struct answer of_gone = with_header(driver, 16, 1);

	(void)state;
	assert_int_equal(vs_lun_remove(driver->device, 0, 0), 0);
	assert_int_equal(vs_lun_set(driver->device, 0, 0, driver->volume, &settings), 0);
	struct answer of_next = with_header(driver, 16, 1);
	finish(driver, of_gone);
	finish(driver, command(driver, read_10(0, 1), NULL, 0, &in, 1));
	finish(driver, of_next);
	assert_good(command(driver, read_10(0, 1), NULL, 0, &in, 1), RESPONSE + BLOCK);
	driver_free(driver);
}

static void test_an_ordered_task_that_outlives_its_lun_holds_nothing_up(void **state)
{
	const vs_lun_settings settings = open_lun();
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);
	struct buffer in = data_in(driver, BLOCK);
	struct answer first = with_header(driver, 16, 1), second = with_header(driver, 16, 1);

	(void)state;
	assert_int_equal(vs_lun_remove(driver->device, 0, 0), 0);
	finish(driver, first);
	assert_int_equal(vs_lun_set(driver->device, 0, 0, driver->volume, &settings), 0);
	finish(driver, second);
	assert_good(command(driver, read_10(0, 1), NULL, 0, &in, 1), RESPONSE + BLOCK);
	driver_free(driver);
}

static void test_an_io_error_is_left_to_python(void **state)
{
	static const struct setup *const setups[] = { &inline_io, &with_uring };

	(void)state;
	for (uint32_t i = 0; i < COUNT(setups); i++) {
		struct driver *driver = driver_with_disk(ON_DISK, *setups[i]);
		struct buffer in = data_in(driver, BLOCK);

		/* the file ends before the map says so: reading past its end must not be answered with GOOD and old bytes */
		assert_int_equal(ftruncate(driver->disk, BLOCK), 0);
		struct answer answer = command(driver, read_10(64, 1), NULL, 0, &in, 1);
		if (answer.used) {
			const uint8_t *bytes = driver_host(driver, in.guest);

			for (uint32_t at = 0; at < BLOCK; at++)
				assert_int_equal(bytes[at], 0);
		} else {
			finish(driver, answer);
		}
		driver_free(driver);
	}
}

static void test_a_write_to_a_read_only_layer_is_left_to_python(void **state)
{
	struct driver *driver = driver_with_disk(ON_TMPFS, inline_io);
	struct buffer out = data_out(driver, BLOCK, 1);
	uint8_t block[BLOCK];

	(void)state;
	assert_int_equal(vs_volume_set_layer(driver->volume, 1, driver->disk, VS_FILE_INSTANT | VS_FILE_READ_ONLY, 1),
			 0);
	assert_int_equal(vs_volume_set_run(driver->volume, 0, 1, entry_of(VS_DATA, 1, 0)), 0);
	finish(driver, command(driver, write_10(0, 1), &out, 1, NULL, 0));
	assert_int_equal(vs_volume_read(driver->volume, 0, block, BLOCK), 0);
	assert_pattern(block, 0, BLOCK);
	driver_free(driver);
}

/* ---- LUNs ---- */

static void test_a_removed_lun_is_left_to_python_and_its_volume_lives_until_then(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);
	struct buffer in = data_in(driver, BLOCK);

	(void)state;
	vs_volume_release(driver->volume);
	driver->volume = NULL;
	assert_good(command(driver, read_10(0, 1), NULL, 0, &in, 1), RESPONSE + BLOCK);
	assert_int_equal(vs_lun_remove(driver->device, 0, 0), 0);
	assert_true(vs_lun_remove(driver->device, 0, 0) < 0);
	finish(driver, command(driver, read_10(0, 1), NULL, 0, &in, 1));
	driver_free(driver);
}

static void test_luns_beyond_the_limits_are_refused(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);
	vs_lun_settings settings = open_lun();

	(void)state;
	assert_int_equal(vs_lun_set(driver->device, 255, 16383, driver->volume, &settings), 0);
	assert_true(vs_lun_set(driver->device, 256, 0, driver->volume, &settings) < 0);
	assert_true(vs_lun_set(driver->device, 0, 16384, driver->volume, &settings) < 0);
	settings.block_shift = 8;
	assert_true(vs_lun_set(driver->device, 1, 0, driver->volume, &settings) < 0);
	settings.block_shift = 13;
	assert_true(vs_lun_set(driver->device, 1, 0, driver->volume, &settings) < 0);
	assert_int_equal(vs_lun_in_flight(driver->device, 0, 0, 0, 1), 0);
	driver_free(driver);
}

static void test_blocks_of_4096_bytes_are_addressed_by_their_number(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);
	vs_lun_settings settings = open_lun();
	struct buffer in = data_in(driver, 2 * PAGE);

	(void)state;
	settings.block_shift = 12;
	settings.blocks = DISK_LENGTH / PAGE;
	assert_int_equal(vs_lun_set(driver->device, 0, 0, driver->volume, &settings), 0);
	assert_good(command(driver, read_10(100, 2), NULL, 0, &in, 1), RESPONSE + 2 * PAGE);
	assert_pattern(driver_host(driver, in.guest), 100 * PAGE, 2 * PAGE);
	finish(driver, command(driver, read_10(DISK_LENGTH / PAGE - 1, 2), NULL, 0, &in, 1));
	driver_free(driver);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ranges_past_the_last_block_are_left_to_python),
		cmocka_unit_test(test_buffers_of_another_length_than_the_transfer_are_left_to_python),
		cmocka_unit_test(test_bits_that_the_row_calls_slow_are_left_to_python),
		cmocka_unit_test(test_a_shut_gate_leaves_all_to_python),
		cmocka_unit_test(test_limits_of_the_lun_are_kept),
		cmocka_unit_test(test_both_lun_formats_reach_the_lun_and_others_python),
		cmocka_unit_test(test_ordered_tasks_are_left_to_python),
		cmocka_unit_test(test_what_comes_behind_an_ordered_task_is_left_to_python_until_that_has_ended),
		cmocka_unit_test(test_an_ordered_task_that_outlives_its_lun_lets_nothing_pass_another_at_that_address),
		cmocka_unit_test(test_an_ordered_task_that_outlives_its_lun_holds_nothing_up),
		cmocka_unit_test(test_an_io_error_is_left_to_python),
		cmocka_unit_test(test_a_write_to_a_read_only_layer_is_left_to_python),
		cmocka_unit_test(test_a_removed_lun_is_left_to_python_and_its_volume_lives_until_then),
		cmocka_unit_test(test_luns_beyond_the_limits_are_refused),
		cmocka_unit_test(test_blocks_of_4096_bytes_are_addressed_by_their_number),
	};

	return cmocka_run_group_tests_name("left to python", tests, NULL, NULL);
}
