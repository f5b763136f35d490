/*
 * test_volume.c - the block map: runs, single entries, states, layers, resizing; and blocking reads and writes of any
 * alignment that agree with a plain array of bytes.
 */
#define _GNU_SOURCE
#include "commands.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CLUSTER = 65536, SHIFT = 16 };

/* A volume with `layers` layers that have no bytes; its map is not loaded. */
static vs_volume *mapped_volume(uint64_t length, uint32_t layers)
{
	vs_volume *volume = vs_volume_new(length, SHIFT);

	assert_non_null(volume);
	for (uint32_t layer = 0; layer < layers; layer++)
		assert_int_equal(vs_volume_set_layer(volume, layer, -1, VS_FILE_NULL, 1), 0);
	return volume;
}

static uint64_t entry_at(vs_volume *volume, uint64_t block)
{
	uint64_t entry = UINT64_MAX;

	assert_int_equal(vs_volume_get_entry(volume, block, &entry), 0);
	return entry;
}

/* ---- the map ---- */

static void test_a_new_volume_is_not_loaded(void **state)
{
	vs_volume *volume = vs_volume_new(10 * CLUSTER, SHIFT);
	uint8_t byte;

	(void)state;
	assert_non_null(volume);
	assert_int_equal(entry_at(volume, 0) >> 60, VS_NOT_LOADED);
	assert_int_equal(entry_at(volume, 9) >> 60, VS_NOT_LOADED);
	assert_int_equal(vs_volume_read(volume, 0, &byte, 1), -ENODATA);
	vs_volume_release(volume);
}

static void test_a_run_advances_its_offset_block_by_block(void **state)
{
	vs_volume *volume = mapped_volume(5000ull * CLUSTER, 7);
	static const struct {
		uint64_t first, count;
	} runs[] = { { 0, 5000 }, { 3, 1 }, { 500, 30 }, { 511, 2 }, { 512, 512 }, { 1000, 3000 }, { 4999, 1 } };
	uint64_t *model = calloc(5000, sizeof(*model));

	(void)state;
	assert_non_null(model);
	for (uint32_t i = 0; i < COUNT(runs); i++) {
		uint64_t entry = entry_of(i % 2 ? VS_SHARED : VS_DATA, i, (uint64_t)(i + 1) << 32);

		assert_int_equal(vs_volume_set_run(volume, runs[i].first, runs[i].count, entry), 0);
		for (uint64_t block = 0; block < runs[i].count; block++)
			model[runs[i].first + block] = entry + block * (CLUSTER >> 9);
		for (uint64_t block = 0; block < 5000; block++)
			assert_int_equal(entry_at(volume, block), model[block]);
	}
	free(model);
	vs_volume_release(volume);
}

static void test_a_run_of_zeros_or_holes_stays_what_it_is(void **state)
{
	vs_volume *volume = vs_volume_new(2000ull * CLUSTER, SHIFT);

	(void)state;
	assert_int_equal(vs_volume_set_run(volume, 0, 2000, entry_of(VS_HOLE, 0, 0)), 0);
	assert_int_equal(vs_volume_set_run(volume, 100, 1000, entry_of(VS_ZERO, 0, 0)), 0);
	assert_int_equal(entry_at(volume, 99), entry_of(VS_HOLE, 0, 0));
	assert_int_equal(entry_at(volume, 100), entry_of(VS_ZERO, 0, 0));
	assert_int_equal(entry_at(volume, 1099), entry_of(VS_ZERO, 0, 0));
	assert_int_equal(entry_at(volume, 1100), entry_of(VS_HOLE, 0, 0));
	vs_volume_release(volume);
}

static void test_single_entries_are_kept_as_given(void **state)
{
	vs_volume *volume = mapped_volume(2000ull * CLUSTER, 1);
	uint64_t entries[700];

	(void)state;
	for (uint32_t i = 0; i < COUNT(entries); i++)
		entries[i] = entry_of(i % 7 ? VS_DATA : VS_ZERO, 0, i % 7 ? (uint64_t)(i * 7919 % 700) * CLUSTER : 0);
	assert_int_equal(vs_volume_set_entries(volume, 300, COUNT(entries), entries), 0);
	for (uint32_t i = 0; i < COUNT(entries); i++)
		assert_int_equal(entry_at(volume, 300 + i), entries[i]);
	assert_int_equal(entry_at(volume, 299) >> 60, VS_NOT_LOADED);
	assert_int_equal(entry_at(volume, 1000) >> 60, VS_NOT_LOADED);
	vs_volume_release(volume);
}

static void test_what_lies_outside_the_volume_is_refused(void **state)
{
	vs_volume *volume = vs_volume_new(10 * CLUSTER, SHIFT);
	uint64_t entry = entry_of(VS_ZERO, 0, 0);
	uint8_t byte = 0;

	(void)state;
	assert_true(vs_volume_set_run(volume, 0, 11, entry) < 0);
	assert_true(vs_volume_set_run(volume, 10, 1, entry) < 0);
	assert_true(vs_volume_set_run(volume, UINT64_MAX, 2, entry) < 0);
	assert_true(vs_volume_set_entries(volume, 10, 1, &entry) < 0);
	assert_true(vs_volume_get_entry(volume, 10, &entry) < 0);
	assert_int_equal(vs_volume_set_run(volume, 0, 10, entry_of(VS_ZERO, 0, 0)), 0);
	assert_int_equal(vs_volume_read(volume, 10 * CLUSTER, &byte, 1), -EINVAL);
	assert_int_equal(vs_volume_read(volume, 10 * CLUSTER - 1, &byte, 2), -EINVAL);
	assert_int_equal(vs_volume_read(volume, UINT64_MAX, &byte, 2), -EINVAL);
	assert_int_equal(vs_volume_write(volume, 10 * CLUSTER, &byte, 1), -EINVAL);
	assert_int_equal(vs_volume_zero(volume, 10 * CLUSTER - 1, 2, 0), -EINVAL);
	vs_volume_release(volume);
}

static void test_block_shifts_outside_9_to_31_are_refused(void **state)
{
	static const uint32_t bad[] = { 0, 8, 32, 64, UINT32_MAX };

	(void)state;
	for (uint32_t i = 0; i < COUNT(bad); i++) {
		errno = 0;
		assert_null(vs_volume_new(CLUSTER, bad[i]));
		assert_int_equal(errno, EINVAL);
	}
	for (uint32_t shift = 9; shift < 32; shift++) {
		vs_volume *volume = vs_volume_new(1ull << 40, shift);

		assert_non_null(volume);
		assert_int_equal(vs_volume_set_run(volume, 0, 1ull << (40 - shift), entry_of(VS_ZERO, 0, 0)), 0);
		vs_volume_release(volume);
	}
}

static void test_a_volume_of_a_pebibyte_costs_little(void **state)
{
	vs_volume *volume = vs_volume_new(1ull << 50, SHIFT);
	uint8_t byte = 1;

	(void)state;
	assert_non_null(volume);
	assert_int_equal(vs_volume_set_run(volume, 0, 1ull << (50 - SHIFT), entry_of(VS_HOLE, 0, 0)), 0);
	assert_int_equal(vs_volume_read(volume, (1ull << 50) - 1, &byte, 1), 0);
	assert_int_equal(byte, 0);
	vs_volume_release(volume);
}

static void test_one_run_for_all_blocks_ends_where_the_volume_ended(void **state)
{
	vs_volume *volume = mapped_volume(1000ull * CLUSTER, 1);

	(void)state;
	assert_int_equal(vs_volume_set_run(volume, 0, 1000, entry_of(VS_DATA, 0, 0)), 0);
	assert_int_equal(vs_volume_resize(volume, 500ull * CLUSTER), 0);
	assert_int_equal(vs_volume_resize(volume, 3000ull * CLUSTER), 0);
	assert_int_equal(entry_at(volume, 499), entry_of(VS_DATA, 0, 499ull * CLUSTER));
	assert_int_equal(entry_at(volume, 500) >> 60, VS_NOT_LOADED);
	assert_int_equal(entry_at(volume, 2999) >> 60, VS_NOT_LOADED);
	vs_volume_release(volume);
}

static const vs_allocation copies = { .sub_shift = 12, .own_layers = 1, .batch_limit = 64 };

static void test_blocks_that_wait_for_a_commit_are_not_cut_off(void **state)
{
	int fd;
	vs_volume *volume = new_volume(ON_TMPFS, 10 * CLUSTER, &fd);
	uint8_t byte = 1;

	(void)state;
	assert_int_equal(vs_volume_set_run(volume, 0, 10, entry_of(VS_HOLE, 0, 0)), 0);
	assert_int_equal(vs_volume_allocates(volume, &copies), 0);
	assert_int_equal(vs_volume_give(volume, 0, 0, 4, 0), 0);
	assert_int_equal(vs_volume_write(volume, 5 * CLUSTER, &byte, 1), 0);
	assert_int_equal(vs_volume_resize(volume, 5 * CLUSTER), -EBUSY);
	assert_int_equal(vs_volume_resize(volume, 6 * CLUSTER), 0);
	byte = 0;
	assert_int_equal(vs_volume_read(volume, 5 * CLUSTER, &byte, 1), 0);
	assert_int_equal(byte, 1);
	close(fd);
	vs_volume_release(volume);
}

static void test_a_grown_volume_keeps_its_map_and_a_shrunk_one_its_end(void **state)
{
	vs_volume *volume = mapped_volume(1000ull * CLUSTER, 1);
	uint8_t byte;

	(void)state;
	assert_int_equal(vs_volume_set_run(volume, 0, 999, entry_of(VS_ZERO, 0, 0)), 0);
	assert_int_equal(vs_volume_set_run(volume, 999, 1, entry_of(VS_DATA, 0, 999ull * CLUSTER)), 0);
	assert_int_equal(vs_volume_resize(volume, 3000ull * CLUSTER + 512), 0);
	assert_int_equal(entry_at(volume, 999), entry_of(VS_DATA, 0, 999ull * CLUSTER));
	assert_int_equal(entry_at(volume, 1000) >> 60, VS_NOT_LOADED);
	assert_int_equal(vs_volume_set_run(volume, 1000, 2001, entry_of(VS_ZERO, 0, 0)), 0);
	assert_int_equal(vs_volume_read(volume, 3000ull * CLUSTER + 511, &byte, 1), 0);
	assert_int_equal(vs_volume_read(volume, 3000ull * CLUSTER + 512, &byte, 1), -EINVAL);
	assert_int_equal(vs_volume_resize(volume, 500ull * CLUSTER), 0);
	assert_int_equal(vs_volume_read(volume, 500ull * CLUSTER, &byte, 1), -EINVAL);
	uint64_t entry;
	assert_true(vs_volume_get_entry(volume, 500, &entry) < 0);
	/* what was cut off does not come back */
	assert_int_equal(vs_volume_resize(volume, 1000ull * CLUSTER), 0);
	assert_int_equal(entry_at(volume, 999) >> 60, VS_NOT_LOADED);
	vs_volume_release(volume);
}

/* ---- layers ---- */

static void test_a_run_in_a_layer_that_is_not_there_is_refused(void **state)
{
	vs_volume *volume = mapped_volume(10 * CLUSTER, 1);
	uint64_t entry = entry_of(VS_DATA, 5, 0);
	uint8_t byte;

	(void)state;
	assert_int_equal(vs_volume_set_run(volume, 0, 10, entry), -EINVAL);
	assert_int_equal(vs_volume_set_entries(volume, 0, 1, &entry), -EINVAL);
	assert_int_equal(vs_volume_read(volume, 0, &byte, 1), -ENODATA);
	assert_true(vs_volume_set_layer(volume, 1 << 12, -1, VS_FILE_NULL, 1) < 0);
	vs_volume_release(volume);
}

static void test_the_layer_has_its_own_descriptor(void **state)
{
	vs_volume *volume = vs_volume_new(CLUSTER, SHIFT);
	int fd = memfd_create("layer", MFD_CLOEXEC);
	uint8_t byte = 0;

	(void)state;
	assert_int_equal(pwrite(fd, "layer", 5, 0), 5);
	assert_int_equal(ftruncate(fd, CLUSTER), 0);
	assert_int_equal(vs_volume_set_layer(volume, 0, fd, VS_FILE_INSTANT, 1), 0);
	assert_int_equal(vs_volume_set_run(volume, 0, 1, entry_of(VS_DATA, 0, 0)), 0);
	close(fd);
	assert_int_equal(vs_volume_read(volume, 2, &byte, 1), 0);
	assert_int_equal(byte, 'y');
	vs_volume_release(volume);
}

static void test_writes_where_the_map_needs_python_say_so(void **state)
{
	static const uint32_t states[] = { VS_NOT_LOADED, VS_HOLE, VS_ZERO, VS_SHARED, VS_COMPRESSED, VS_PARTIAL };
	int fd;
	vs_volume *volume = new_volume(ON_MEMORY, 10 * CLUSTER, &fd);
	uint8_t bytes[2 * BLOCK] = { 0 }, before[2 * BLOCK];

	(void)state;
	for (uint32_t i = 0; i < COUNT(states); i++) {
		assert_int_equal(vs_volume_set_run(volume, 0, 10, entry_of(VS_DATA, 0, 0)), 0);
		assert_int_equal(
			vs_volume_set_run(volume, 1, 1, entry_of(states[i], 0, states[i] == VS_SHARED ? CLUSTER : 0)),
			0);
		assert_int_equal(vs_volume_write(volume, CLUSTER - BLOCK, bytes, sizeof(bytes)), -ENODATA);
		assert_int_equal(vs_volume_read(volume, CLUSTER - BLOCK, before, BLOCK), 0);
	}
	close(fd);
	vs_volume_release(volume);
}

static void test_reads_of_each_state(void **state)
{
	int fd;
	vs_volume *volume = new_volume(ON_MEMORY, 10 * CLUSTER, &fd);
	uint8_t bytes[2 * BLOCK];

	(void)state;
	assert_int_equal(vs_volume_set_run(volume, 1, 1, entry_of(VS_SHARED, 0, 5 * CLUSTER)), 0);
	assert_int_equal(vs_volume_read(volume, CLUSTER - BLOCK, bytes, sizeof(bytes)), 0);
	assert_int_equal(bytes[0], pattern(CLUSTER - BLOCK));
	assert_int_equal(bytes[BLOCK], pattern(5 * CLUSTER));
	for (uint32_t zeros = VS_HOLE; zeros <= VS_ZERO; zeros++) {
		memset(bytes, 0xff, sizeof(bytes));
		assert_int_equal(vs_volume_set_run(volume, 1, 1, entry_of(zeros, 0, 0)), 0);
		assert_int_equal(vs_volume_read(volume, CLUSTER - BLOCK, bytes, sizeof(bytes)), 0);
		assert_int_equal(bytes[0], pattern(CLUSTER - BLOCK));
		for (uint32_t i = BLOCK; i < 2 * BLOCK; i++)
			assert_int_equal(bytes[i], 0);
	}
	for (uint32_t unreadable = VS_COMPRESSED; unreadable <= VS_PARTIAL; unreadable++) {
		assert_int_equal(vs_volume_set_run(volume, 1, 1, entry_of(unreadable, 0, 0)), 0);
		assert_int_equal(vs_volume_read(volume, CLUSTER - BLOCK, bytes, sizeof(bytes)), -ENODATA);
	}
	close(fd);
	vs_volume_release(volume);
}

/* ---- bytes against a model ---- */

static void against_a_model(enum medium medium)
{
	enum { LENGTH = 8 * CLUSTER };
	int fd;
	vs_volume *volume = new_volume(medium, LENGTH, &fd);
	uint8_t *model = malloc(LENGTH), *bytes = malloc(LENGTH);
	uint32_t random = 12345;

	assert_true(model && bytes);
	for (uint32_t i = 0; i < LENGTH; i++)
		model[i] = pattern(i);
	/* the blocks lie in the file in another order */
	for (uint64_t block = 0; block < 8; block++)
		assert_int_equal(vs_volume_set_run(volume, block, 1, entry_of(VS_DATA, 0, (block ^ 5) * CLUSTER)), 0);
	for (uint64_t block = 0; block < 8; block++)
		for (uint32_t i = 0; i < CLUSTER; i++)
			model[block * CLUSTER + i] = pattern((block ^ 5) * CLUSTER + i);
	for (uint32_t turn = 0; turn < 300; turn++) {
		random = random * 1664525 + 1013904223;
		uint32_t offset = random % LENGTH;
		random = random * 1664525 + 1013904223;
		uint32_t length = 1 + (random >> 8) % (turn % 3 ? 3000 : 3 * CLUSTER);
		if (length > LENGTH - offset)
			length = LENGTH - offset;
		switch (random % 4) {
		case 0:
			for (uint32_t i = 0; i < length; i++)
				bytes[i] = model[offset + i] = (uint8_t)(turn + i);
			assert_int_equal(vs_volume_write(volume, offset, bytes, length), 0);
			break;
		case 1:
			memset(model + offset, 0, length);
			assert_int_equal(vs_volume_zero(volume, offset, length, (int)turn % 2), 0);
			break;
		default:
			assert_int_equal(vs_volume_read(volume, offset, bytes, length), 0);
			assert_memory_equal(bytes, model + offset, length);
		}
	}
	assert_int_equal(vs_volume_flush(volume), 0);
	assert_int_equal(vs_volume_read(volume, 0, bytes, LENGTH), 0);
	assert_memory_equal(bytes, model, LENGTH);
	free(model);
	free(bytes);
	close(fd);
	vs_volume_release(volume);
}

static void test_memory_agrees_with_a_model(void **state)
{
	(void)state;
	against_a_model(ON_MEMORY);
}

static void test_tmpfs_agrees_with_a_model(void **state)
{
	(void)state;
	against_a_model(ON_TMPFS);
}

static void test_disk_agrees_with_a_model(void **state)
{
	(void)state;
	against_a_model(ON_DISK);
}

static void test_direct_disk_agrees_with_a_model_at_any_alignment(void **state)
{
	(void)state;
	against_a_model(ON_DISK_DIRECT);
}

static void test_deallocating_gives_space_back(void **state)
{
	static const enum medium media[] = { ON_MEMORY, ON_TMPFS, ON_DISK };
	struct stat before, after;

	(void)state;
	for (uint32_t m = 0; m < COUNT(media); m++) {
		int fd;
		vs_volume *volume = new_volume(media[m], 8 * CLUSTER, &fd);

		assert_int_equal(fstat(fd, &before), 0);
		assert_int_equal(vs_volume_zero(volume, CLUSTER, 4 * CLUSTER, 1), 0);
		assert_int_equal(fstat(fd, &after), 0);
		assert_true(after.st_blocks + 4 * CLUSTER / 512 <= before.st_blocks);
		assert_int_equal(after.st_size, before.st_size);
		close(fd);
		vs_volume_release(volume);
	}
}

static void test_zeroing_without_deallocating_keeps_the_space(void **state)
{
	static const enum medium media[] = { ON_TMPFS, ON_DISK };
	struct stat before, after;

	(void)state;
	for (uint32_t m = 0; m < COUNT(media); m++) {
		int fd;
		vs_volume *volume = new_volume(media[m], 8 * CLUSTER, &fd);

		assert_int_equal(fstat(fd, &before), 0);
		assert_int_equal(vs_volume_zero(volume, CLUSTER, 4 * CLUSTER, 0), 0);
		assert_int_equal(fstat(fd, &after), 0);
		assert_true(after.st_blocks >= before.st_blocks);
		close(fd);
		vs_volume_release(volume);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_new_volume_is_not_loaded),
		cmocka_unit_test(test_a_run_advances_its_offset_block_by_block),
		cmocka_unit_test(test_a_run_of_zeros_or_holes_stays_what_it_is),
		cmocka_unit_test(test_single_entries_are_kept_as_given),
		cmocka_unit_test(test_what_lies_outside_the_volume_is_refused),
		cmocka_unit_test(test_block_shifts_outside_9_to_31_are_refused),
		cmocka_unit_test(test_a_volume_of_a_pebibyte_costs_little),
		cmocka_unit_test(test_one_run_for_all_blocks_ends_where_the_volume_ended),
		cmocka_unit_test(test_blocks_that_wait_for_a_commit_are_not_cut_off),
		cmocka_unit_test(test_a_grown_volume_keeps_its_map_and_a_shrunk_one_its_end),
		cmocka_unit_test(test_a_run_in_a_layer_that_is_not_there_is_refused),
		cmocka_unit_test(test_the_layer_has_its_own_descriptor),
		cmocka_unit_test(test_writes_where_the_map_needs_python_say_so),
		cmocka_unit_test(test_reads_of_each_state),
		cmocka_unit_test(test_memory_agrees_with_a_model),
		cmocka_unit_test(test_tmpfs_agrees_with_a_model),
		cmocka_unit_test(test_disk_agrees_with_a_model),
		cmocka_unit_test(test_direct_disk_agrees_with_a_model_at_any_alignment),
		cmocka_unit_test(test_deallocating_gives_space_back),
		cmocka_unit_test(test_zeroing_without_deallocating_keeps_the_space),
	};

	return cmocka_run_group_tests_name("volume", tests, NULL, NULL);
}
