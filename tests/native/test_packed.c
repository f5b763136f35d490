/*
 * test_packed.c - compressed blocks on the fast path: read by C where the stream is right, left to Python where not.
 */
#define _GNU_SOURCE
#include "commands.h"

#include <libdeflate.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

enum {
	CLUSTER = 65536,
	CLUSTERS = DISK_LENGTH / CLUSTER,
	RESPONSE = sizeof(struct virtio_scsi_cmd_resp),
	PLACE = 12345
};

static const struct setup inline_io = { 0 };

static size_t deflated(const uint8_t *plain, uint8_t *to, size_t room)
{
	struct libdeflate_compressor *compressor = libdeflate_alloc_compressor(6);
	size_t length = libdeflate_deflate_compress(compressor, plain, CLUSTER, to, room);

	libdeflate_free_compressor(compressor);
	return length;
}

/* The driver's LUN: block 1 is compressed at PLACE, the others are holes. Returns the stream's length. */
static size_t become_compressed(struct driver *driver, uint32_t method)
{
	static uint8_t plain[CLUSTER], stream[2 * CLUSTER];
	const vs_lun_settings settings = open_lun();
	vs_volume *volume = vs_volume_new(DISK_LENGTH, 16);

	for (uint32_t i = 0; i < CLUSTER; i++)
		plain[i] = pattern(i);
	size_t length = method == VS_FILE_ZSTD ? ZSTD_compress(stream, sizeof(stream), plain, CLUSTER, 3)
					       : deflated(plain, stream, sizeof(stream));
	assert_true(length > 0 && length < CLUSTER);
	assert_int_equal(pwrite(driver->disk, stream, length, PLACE), length);
	assert_int_equal(vs_volume_set_layer(volume, 0, driver->disk, VS_FILE_INSTANT | method, 1), 0);
	assert_int_equal(vs_volume_set_run(volume, 0, CLUSTERS, entry_of(VS_HOLE, 0, 0)), 0);
	assert_int_equal(vs_volume_set_run(volume, 1, 1, (uint64_t)VS_COMPRESSED << 60 | PLACE), 0);
	assert_int_equal(vs_lun_set(driver->device, 0, 0, volume, &settings), 0);
	vs_volume_release(driver->volume);
	driver->volume = volume;
	return length;
}

static const uint8_t *seen(struct driver *driver, struct buffer in)
{
	return driver_host(driver, in.guest);
}

static void read_back(uint32_t method)
{
	struct driver *driver = driver_with_disk(ON_TMPFS, inline_io);
	struct buffer in = data_in(driver, 3 * PAGE);

	become_compressed(driver, method);
	/* a page from the middle, twice: unpacked, then kept */
	for (unsigned i = 0; i < 2; i++) {
		struct buffer page = data_in(driver, PAGE);
		assert_good(command(driver, read_10(128 + 16, 8), NULL, 0, &page, 1), RESPONSE + PAGE);
		assert_pattern(seen(driver, page), 2 * PAGE, PAGE);
	}
	/* from the hole before into the block */
	assert_good(command(driver, read_10(128 - 8, 24), NULL, 0, &in, 1), RESPONSE + 3 * PAGE);
	for (uint32_t i = 0; i < PAGE; i++)
		assert_int_equal(seen(driver, in)[i], 0);
	assert_pattern(seen(driver, in) + PAGE, 0, 2 * PAGE);
	driver_free(driver);
}

static void test_a_deflated_block_is_read_without_python(void **state)
{
	(void)state;
	read_back(VS_FILE_DEFLATE);
}

static void test_a_zstd_block_is_read_without_python(void **state)
{
	(void)state;
	read_back(VS_FILE_ZSTD);
}

static void leave_to_python(uint32_t method, bool cut)
{
	struct driver *driver = driver_with_disk(ON_TMPFS, inline_io);
	struct buffer in = data_in(driver, PAGE);
	vs_completion completion = { .response_length = RESPONSE };

	size_t length = become_compressed(driver, method);
	if (cut)
		assert_int_equal(ftruncate(driver->disk, (off_t)(PLACE + length / 2)), 0);
	else
		assert_int_equal(pwrite(driver->disk, "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 8, PLACE), 8);
	struct answer answer = command(driver, read_10(128, 8), NULL, 0, &in, 1);
	assert_slow(answer);
	completion.request = answer.notice.request;
	assert_int_equal(vs_complete(driver->device, &completion, 1), 0);
	driver_free(driver);
}

static void test_a_stream_that_is_none_is_left_to_python(void **state)
{
	(void)state;
	leave_to_python(VS_FILE_DEFLATE, false);
	leave_to_python(VS_FILE_ZSTD, false);
}

static void test_a_stream_that_the_file_ends_in_is_left_to_python(void **state)
{
	(void)state;
	leave_to_python(VS_FILE_DEFLATE, true);
	leave_to_python(VS_FILE_ZSTD, true);
}

static void test_more_blocks_than_are_kept_are_read_right(void **state)
{
	struct driver *driver = driver_with_disk(ON_TMPFS, inline_io);

	(void)state;
	become_compressed(driver, VS_FILE_DEFLATE);
	/* the same bytes again and again, under other names: each is unpacked for itself */
	for (uint64_t block = 2; block < CLUSTERS; block++)
		assert_int_equal(vs_volume_set_run(driver->volume, block, 1, (uint64_t)VS_COMPRESSED << 60 | PLACE), 0);
	for (uint32_t round = 0; round < 2; round++)
		for (uint32_t block = 1; block < CLUSTERS; block += 7) {
			struct buffer in = data_in(driver, PAGE);
			struct cdb cdb = read_10(block * 128 + 8, 8);

			assert_good(command(driver, cdb, NULL, 0, &in, 1), RESPONSE + PAGE);
			assert_pattern(seen(driver, in), PAGE, PAGE);
		}
	driver_free(driver);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_deflated_block_is_read_without_python),
		cmocka_unit_test(test_a_zstd_block_is_read_without_python),
		cmocka_unit_test(test_a_stream_that_is_none_is_left_to_python),
		cmocka_unit_test(test_a_stream_that_the_file_ends_in_is_left_to_python),
		cmocka_unit_test(test_more_blocks_than_are_kept_are_read_right),
	};

	return cmocka_run_group_tests_name("packed", tests, NULL, NULL);
}
