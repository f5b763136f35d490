/*
 * test_fast_path.c - media commands that C serves by itself: the right bytes on every kind of file, and everything that it
 * must leave to Python left alone.
 */
#define _GNU_SOURCE
#include "commands.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
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

/* ---- the right bytes ---- */

static void read_back(struct driver *driver, uint64_t lba, const void *expected, uint32_t length)
{
	uint8_t *bytes = malloc(length);

	assert_non_null(bytes);
	assert_int_equal(vs_volume_read(driver->volume, lba * BLOCK, bytes, length), 0);
	assert_memory_equal(bytes, expected, length);
	free(bytes);
}

static void read_and_write(enum medium medium, struct setup setup)
{
	struct driver *driver = driver_with_disk(medium, setup);
	static const struct {
		uint32_t lba, blocks;
	} ranges[] = {
		{ 0, 1 }, { 1, 1 }, { 8, 8 }, { 127, 2 }, { 7, 300 }, { 128, 128 }, { 16383, 1 }, { 16000, 384 }
	};

	for (uint32_t i = 0; i < COUNT(ranges); i++) {
		uint32_t length = ranges[i].blocks * BLOCK;
		struct buffer in = data_in(driver, length);

		assert_good(command(driver, read_16(ranges[i].lba, ranges[i].blocks), NULL, 0, &in, 1),
			    RESPONSE + length);
		assert_pattern(driver_host(driver, in.guest), ranges[i].lba * BLOCK, length);
	}
	for (uint32_t i = 0; i < COUNT(ranges); i++) {
		uint32_t length = ranges[i].blocks * BLOCK;
		struct buffer out = data_out(driver, length, (uint8_t)(i * 31));

		assert_good(command(driver, write_16(ranges[i].lba, ranges[i].blocks), &out, 1, NULL, 0), RESPONSE);
		read_back(driver, ranges[i].lba, driver_host(driver, out.guest), length);
		struct buffer in = data_in(driver, length);
		assert_good(command(driver, read_16(ranges[i].lba, ranges[i].blocks), NULL, 0, &in, 1),
			    RESPONSE + length);
		assert_memory_equal(driver_host(driver, in.guest), driver_host(driver, out.guest), length);
	}
	assert_good(command(driver, synchronize_cache_10(), NULL, 0, NULL, 0), RESPONSE);
	driver_free(driver);
}

static void test_memory_is_read_and_written(void **state)
{
	(void)state;
	read_and_write(ON_MEMORY, inline_io);
}

static void test_a_file_on_tmpfs_is_read_and_written(void **state)
{
	(void)state;
	read_and_write(ON_TMPFS, inline_io);
	read_and_write(ON_TMPFS, with_uring);
}

static void test_a_file_on_disk_is_read_and_written(void **state)
{
	(void)state;
	read_and_write(ON_DISK, inline_io);
	read_and_write(ON_DISK, with_uring);
}

static void test_a_file_opened_direct_is_read_and_written(void **state)
{
	(void)state;
	read_and_write(ON_DISK_DIRECT, inline_io);
	read_and_write(ON_DISK_DIRECT, with_uring);
}

static void test_null_answers_and_moves_nothing(void **state)
{
	struct driver *driver = driver_with_disk(ON_NULL, inline_io);
	struct buffer in = data_in(driver, PAGE), out = data_out(driver, PAGE, 1);

	(void)state;
	assert_good(command(driver, read_10(0, 8), NULL, 0, &in, 1), RESPONSE + PAGE);
	assert_good(command(driver, write_10(0, 8), &out, 1, NULL, 0), RESPONSE);
	assert_good(command(driver, synchronize_cache_10(), NULL, 0, NULL, 0), RESPONSE);
	driver_free(driver);
}

static void test_every_opcode_reads_its_own_fields(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);
	const struct cdb reads[] = { read_6(0x1234, 3), read_10(0x1234, 3), read_12(0x1234, 3), read_16(0x1234, 3) };
	const struct cdb writes[] = { write_6(0x1234, 3), write_10(0x1234, 3), write_16(0x1234, 3) };

	(void)state;
	for (uint32_t i = 0; i < COUNT(reads); i++) {
		struct buffer in = data_in(driver, 3 * BLOCK);

		assert_good(command(driver, reads[i], NULL, 0, &in, 1), RESPONSE + 3 * BLOCK);
		assert_pattern(driver_host(driver, in.guest), 0x1234 * BLOCK, 3 * BLOCK);
	}
	for (uint32_t i = 0; i < COUNT(writes); i++) {
		struct buffer out = data_out(driver, 3 * BLOCK, (uint8_t)i);

		assert_good(command(driver, writes[i], &out, 1, NULL, 0), RESPONSE);
		read_back(driver, 0x1234, driver_host(driver, out.guest), 3 * BLOCK);
	}
	driver_free(driver);
}

static void test_read_6_of_length_0_is_256_blocks(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);
	struct buffer in = data_in(driver, 256 * BLOCK);

	(void)state;
	assert_good(command(driver, read_6(5, 0), NULL, 0, &in, 1), RESPONSE + 256 * BLOCK);
	assert_pattern(driver_host(driver, in.guest), 5 * BLOCK, 256 * BLOCK);
	driver_free(driver);
}

static void test_scattered_data_keeps_its_order(void **state)
{
	static const enum medium media[] = { ON_MEMORY, ON_TMPFS, ON_DISK, ON_DISK_DIRECT };

	(void)state;
	for (uint32_t m = 0; m < COUNT(media); m++) {
		struct driver *driver = driver_with_disk(media[m], with_uring);
		struct buffer in[24];
		uint64_t guest = driver_allocate(driver, 0, 64 * BLOCK, PAGE) + 1; /* odd: O_DIRECT needs a bounce */
		uint64_t at = 0;

		for (uint32_t i = 0; i < COUNT(in); i++) {
			uint32_t length = i + 1 == COUNT(in) ? 32 * BLOCK - (uint32_t)at : 1 + (i * 97) % 700;

			in[i] = (struct buffer){ guest + at, length, true };
			at += length;
		}
		assert_good(command(driver, read_10(9, 32), NULL, 0, in, COUNT(in)), RESPONSE + 32 * BLOCK);
		assert_pattern(driver_host(driver, guest), 9 * BLOCK, 32 * BLOCK);
		uint8_t *bytes = driver_host(driver, guest);
		for (uint32_t i = 0; i < 32 * BLOCK; i++)
			bytes[i] = (uint8_t)(i * 3 + (i >> 9));
		for (uint32_t i = 0; i < COUNT(in); i++)
			in[i].writable = false;
		assert_good(command(driver, write_10(33, 32), in, COUNT(in), NULL, 0), RESPONSE);
		read_back(driver, 33, bytes, 32 * BLOCK);
		driver_free(driver);
	}
}

static void test_neighbours_of_a_direct_write_keep_their_bytes(void **state)
{
	struct driver *driver = driver_with_disk(ON_DISK_DIRECT, with_uring);
	struct buffer out = data_out(driver, 3 * BLOCK, 77);
	uint8_t around[16 * BLOCK];

	(void)state;
	assert_good(command(driver, write_10(5, 3), &out, 1, NULL, 0), RESPONSE);
	assert_int_equal(vs_volume_read(driver->volume, 0, around, sizeof(around)), 0);
	assert_pattern(around, 0, 5 * BLOCK);
	assert_memory_equal(around + 5 * BLOCK, driver_host(driver, out.guest), 3 * BLOCK);
	assert_pattern(around + 8 * BLOCK, 8 * BLOCK, 8 * BLOCK);
	driver_free(driver);
}

static void test_overlapping_depth_is_answered_once_each(void **state)
{
	struct driver *driver = driver_with_disk(ON_DISK_DIRECT, (struct setup){ .io_uring = true, .ring_size = 256 });
	bool seen[256] = { false };

	(void)state;
	for (uint32_t i = 0; i < 64; i++) {
		struct buffer buffers[] = { { new_header(driver, read_10(i * 8, 8), i), 51, false },
					    { new_response(driver), RESPONSE, true },
					    data_in(driver, PAGE) };
		driver_offer(driver, REQUEST, driver_chain(driver, REQUEST, buffers, 3));
	}
	for (uint32_t i = 0; i < 64; i++) {
		struct vring_used_elem used;

		assert_true(driver_wait(driver, REQUEST));
		assert_true(driver_used(driver, REQUEST, &used));
		assert_false(seen[used.id]);
		seen[used.id] = true;
	}
	driver_free(driver);
}

static void test_fua_and_write_through_writes_are_served(void **state)
{
	static const enum medium media[] = { ON_MEMORY, ON_TMPFS, ON_DISK, ON_DISK_DIRECT };

	(void)state;
	for (uint32_t m = 0; m < COUNT(media); m++) {
		struct driver *driver = driver_with_disk(media[m], with_uring);
		struct buffer out = data_out(driver, PAGE, 5);
		struct cdb cdb = write_10(8, 8);
		vs_lun_settings settings = open_lun();

		cdb.bytes[1] |= 0x08;
		assert_good(command(driver, cdb, &out, 1, NULL, 0), RESPONSE);
		settings.write_through = 1;
		assert_int_equal(vs_lun_set(driver->device, 0, 0, driver->volume, &settings), 0);
		assert_good(command(driver, write_10(8, 8), &out, 1, NULL, 0), RESPONSE);
		read_back(driver, 8, driver_host(driver, out.guest), PAGE);
		driver_free(driver);
	}
}

/* ---- zeros ---- */

static uint64_t allocated(int fd)
{
	struct stat status;

	assert_int_equal(fstat(fd, &status), 0);
	return (uint64_t)status.st_blocks * 512;
}

static void assert_zeros(struct driver *driver, uint64_t lba, uint32_t blocks)
{
	uint8_t *bytes = malloc(blocks * BLOCK);

	assert_non_null(bytes);
	assert_int_equal(vs_volume_read(driver->volume, lba * BLOCK, bytes, blocks * BLOCK), 0);
	for (uint32_t i = 0; i < blocks * BLOCK; i++)
		assert_int_equal(bytes[i], 0);
	free(bytes);
}

/* GOOD and zeros; or, where the file cannot be zeroed by one call (tmpfs), left whole to Python. */
static void zeroed(struct driver *driver, struct answer answer, bool may_be_slow, uint64_t lba, uint32_t blocks)
{
	uint8_t block[BLOCK];

	if (may_be_slow && answer.slow) {
		finish(driver, answer);
		assert_int_equal(vs_volume_read(driver->volume, lba * BLOCK, block, BLOCK), 0);
		assert_pattern(block, lba * BLOCK, BLOCK);
		return;
	}
	assert_good(answer, RESPONSE);
	assert_zeros(driver, lba, blocks);
}

static void write_same(enum medium medium, bool unmap)
{
	struct driver *driver = driver_with_disk(medium, with_uring);
	struct buffer out = data_out(driver, BLOCK, 0);
	bool may_be_slow = medium == ON_TMPFS && !unmap;
	uint8_t edge[BLOCK];

	memset(driver_host(driver, out.guest), 0, BLOCK);
	zeroed(driver, command(driver, write_same_16(64, 512, unmap, false), &out, 1, NULL, 0), may_be_slow, 64, 512);
	zeroed(driver, command(driver, write_same_16(1001, 3, unmap, true), NULL, 0, NULL, 0), may_be_slow, 1001, 3);
	assert_int_equal(vs_volume_read(driver->volume, 63 * BLOCK, edge, BLOCK), 0);
	assert_pattern(edge, 63 * BLOCK, BLOCK);
	assert_int_equal(vs_volume_read(driver->volume, 1004 * BLOCK, edge, BLOCK), 0);
	assert_pattern(edge, 1004 * BLOCK, BLOCK);
	driver_free(driver);
}

static void test_write_same_of_zeros_zeroes_its_blocks_and_no_others(void **state)
{
	static const enum medium media[] = { ON_MEMORY, ON_TMPFS, ON_DISK, ON_DISK_DIRECT };

	(void)state;
	for (uint32_t m = 0; m < COUNT(media); m++) {
		write_same(media[m], false);
		write_same(media[m], true);
	}
}

static void test_write_same_of_other_bytes_is_left_to_python(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);
	struct buffer out = data_out(driver, BLOCK, 0);

	(void)state;
	memset(driver_host(driver, out.guest), 0, BLOCK);
	((uint8_t *)driver_host(driver, out.guest))[BLOCK - 1] = 1;
	finish(driver, command(driver, write_same_16(64, 8, false, false), &out, 1, NULL, 0));
	driver_free(driver);
}

/* An UNMAP parameter list (SBC-4 5.35.2) in guest memory. */
static struct buffer unmap_list(struct driver *driver, const uint64_t (*ranges)[2], uint32_t count)
{
	struct buffer out = data_out(driver, 8 + 16 * count, 0);
	uint8_t *list = driver_host(driver, out.guest);

	memset(list, 0, out.length);
	list[0] = (uint8_t)((out.length - 2) >> 8);
	list[1] = (uint8_t)(out.length - 2);
	list[2] = (uint8_t)((out.length - 8) >> 8);
	list[3] = (uint8_t)(out.length - 8);
	for (uint32_t i = 0; i < count; i++)
		for (uint32_t byte = 0; byte < 8; byte++) {
			list[8 + 16 * i + byte] = (uint8_t)(ranges[i][0] >> (56 - 8 * byte));
			if (byte < 4)
				list[16 + 16 * i + byte] = (uint8_t)(ranges[i][1] >> (24 - 8 * byte));
		}
	return out;
}

static void test_unmap_gives_space_back_and_reads_as_zeros(void **state)
{
	static const enum medium media[] = { ON_MEMORY, ON_TMPFS, ON_DISK, ON_DISK_DIRECT };
	static const uint64_t ranges[][2] = { { 128, 1024 }, { 4096, 8 }, { 9000, 1 } };

	(void)state;
	for (uint32_t m = 0; m < COUNT(media); m++) {
		struct driver *driver = driver_with_disk(media[m], with_uring);
		struct buffer out = unmap_list(driver, ranges, COUNT(ranges));
		uint64_t before = allocated(driver->disk);

		assert_good(command(driver, unmap_10((uint16_t)out.length), &out, 1, NULL, 0), RESPONSE);
		for (uint32_t i = 0; i < COUNT(ranges); i++)
			assert_zeros(driver, ranges[i][0], (uint32_t)ranges[i][1]);
		assert_true(allocated(driver->disk) + 1024 * BLOCK <= before);
		driver_free(driver);
	}
}

static void test_an_odd_unmap_list_is_left_to_python(void **state)
{
	static const uint64_t past_the_end[][2] = { { 0, 8 }, { DISK_BLOCKS - 1, 2 } };
	static const uint64_t far_away[][2] = { { UINT64_MAX, 1 } };
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);
	struct buffer out = unmap_list(driver, past_the_end, 2);
	uint8_t block[BLOCK];

	(void)state;
	finish(driver, command(driver, unmap_10((uint16_t)out.length), &out, 1, NULL, 0));
	assert_int_equal(vs_volume_read(driver->volume, 0, block, BLOCK), 0);
	assert_pattern(block, 0, BLOCK); /* nothing was unmapped before the list was known to be fine */
	out = unmap_list(driver, far_away, 1);
	finish(driver, command(driver, unmap_10((uint16_t)out.length), &out, 1, NULL, 0));
	finish(driver, command(driver, unmap_10((uint16_t)out.length - 1), &out, 1, NULL, 0));
	((uint8_t *)driver_host(driver, out.guest))[3] ^= 16;
	finish(driver, command(driver, unmap_10((uint16_t)out.length), &out, 1, NULL, 0));
	driver_free(driver);
}

static void test_what_was_answered_is_counted_for_its_lun(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);
	struct buffer out = data_out(driver, 3 * BLOCK, 1), in = data_in(driver, 2 * BLOCK);
	vs_lun_counters counters;

	(void)state;
	assert_good(command(driver, write_16(8, 3), &out, 1, NULL, 0), RESPONSE);
	assert_good(command(driver, read_16(8, 2), NULL, 0, &in, 1), RESPONSE + 2 * BLOCK);
	assert_good(command(driver, read_16(9, 2), NULL, 0, &in, 1), RESPONSE + 2 * BLOCK);
	finish(driver, command(driver, read_16(DISK_BLOCKS, 2), NULL, 0, &in, 1));
	assert_int_equal(vs_lun_count(driver->device, 0, 0, &counters), 0);
	assert_int_equal(counters.writes, 1);
	assert_int_equal(counters.reads, 2);
	assert_int_equal(counters.bytes_written, 3 * BLOCK);
	assert_int_equal(counters.bytes_read, 4 * BLOCK);
	assert_int_equal(vs_lun_count(driver->device, 0, 1, &counters), -ENOENT);
	assert_int_equal(vs_lun_count(driver->device, 256, 0, &counters), -ENOENT);
	assert_int_equal(counters.reads, 0);
	driver_free(driver);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_memory_is_read_and_written),
		cmocka_unit_test(test_a_file_on_tmpfs_is_read_and_written),
		cmocka_unit_test(test_a_file_on_disk_is_read_and_written),
		cmocka_unit_test(test_a_file_opened_direct_is_read_and_written),
		cmocka_unit_test(test_null_answers_and_moves_nothing),
		cmocka_unit_test(test_every_opcode_reads_its_own_fields),
		cmocka_unit_test(test_read_6_of_length_0_is_256_blocks),
		cmocka_unit_test(test_scattered_data_keeps_its_order),
		cmocka_unit_test(test_neighbours_of_a_direct_write_keep_their_bytes),
		cmocka_unit_test(test_overlapping_depth_is_answered_once_each),
		cmocka_unit_test(test_fua_and_write_through_writes_are_served),
		cmocka_unit_test(test_write_same_of_zeros_zeroes_its_blocks_and_no_others),
		cmocka_unit_test(test_write_same_of_other_bytes_is_left_to_python),
		cmocka_unit_test(test_unmap_gives_space_back_and_reads_as_zeros),
		cmocka_unit_test(test_an_odd_unmap_list_is_left_to_python),
		cmocka_unit_test(test_what_was_answered_is_counted_for_its_lun),
	};

	return cmocka_run_group_tests_name("fast path", tests, NULL, NULL);
}
