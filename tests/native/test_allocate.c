/*
 * test_allocate.c - commands that meet more than one kind of block: holes beside data, and writes that need new blocks.
 */
#define _GNU_SOURCE
#include "commands.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static int failed; /* the last commit_begin */

enum { CLUSTER = 65536, CLUSTERS = DISK_LENGTH / CLUSTER, RESPONSE = sizeof(struct virtio_scsi_cmd_resp) };

static const struct setup inline_io = { 0 };

static void finish(struct driver *driver, struct answer answer)
{
	vs_completion completion = { .request = answer.notice.request, .response_length = RESPONSE };

	assert_slow(answer);
	assert_int_equal(vs_complete(driver->device, &completion, 1), 0);
}

static uint64_t entry_at(vs_volume *volume, uint64_t block)
{
	uint64_t entry = 0;

	assert_int_equal(vs_volume_get_entry(volume, block, &entry), 0);
	return entry;
}

static const vs_allocation copies = {
	.sub_shift = 12, .own_layers = 1, .batch_limit = 64, .zero_entry = (uint64_t)VS_HOLE << 60
};

/* The driver's LUN gets a volume without a block of its own, and room for new ones in the file that it had. */
static void become_empty(struct driver *driver)
{
	const vs_lun_settings settings = open_lun();
	vs_volume *volume = vs_volume_new(DISK_LENGTH, 16);

	assert_non_null(volume);
	assert_int_equal(vs_volume_set_layer(volume, 0, driver->disk, VS_FILE_INSTANT, 1), 0);
	assert_int_equal(vs_volume_set_run(volume, 0, CLUSTERS, entry_of(VS_HOLE, 0, 0)), 0);
	assert_int_equal(vs_volume_allocates(volume, &copies), 0);
	assert_int_equal(vs_volume_give(volume, 0, 0, 16, 0), 0);
	assert_int_equal(vs_lun_set(driver->device, 0, 0, volume, &settings), 0);
	vs_volume_release(driver->volume);
	driver->volume = volume;
}

static void test_a_hole_after_a_block_that_cannot_be_read_makes_no_good_answer(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);
	const vs_lun_settings settings = open_lun();
	vs_volume *volume = vs_volume_new(DISK_LENGTH, 16);
	struct buffer in = data_in(driver, 2 * BLOCK);
	char path[64];

	(void)state;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", driver->disk);
	int unreadable = open(path, O_WRONLY | O_CLOEXEC);
	assert_true(unreadable >= 0);
	assert_int_equal(vs_volume_set_layer(volume, 0, unreadable, VS_FILE_BLOCK_DEVICE, 1), 0);
	assert_int_equal(vs_volume_set_run(volume, 0, CLUSTERS, entry_of(VS_HOLE, 0, 0)), 0);
	assert_int_equal(vs_volume_set_run(volume, 0, 1, entry_of(VS_DATA, 0, 0)), 0);
	assert_int_equal(vs_lun_set(driver->device, 0, 0, volume, &settings), 0);
	finish(driver, command(driver, read_10(CLUSTER / BLOCK - 1, 2), NULL, 0, &in, 1));
	close(unreadable);
	driver_free(driver);
	vs_volume_release(volume);
}

static void test_a_write_to_a_hole_takes_a_new_block(void **state)
{
	struct driver *driver = driver_with_disk(ON_TMPFS, inline_io);
	struct buffer out = data_out(driver, PAGE, 3), in = data_in(driver, PAGE);
	vs_change changes[4];

	(void)state;
	become_empty(driver);
	assert_good(command(driver, write_10(8, 8), &out, 1, NULL, 0), RESPONSE);
	assert_good(command(driver, read_10(8, 8), NULL, 0, &in, 1), RESPONSE + PAGE);
	assert_memory_equal(driver_host(driver, in.guest), driver_host(driver, out.guest), PAGE);
	assert_int_equal(vs_volume_commit_begin(driver->volume, changes, COUNT(changes), &failed), 1);
	assert_int_equal(vs_volume_commit_end(driver->volume, 1), 0);
	assert_int_equal(entry_at(driver->volume, 0), entry_of(VS_DATA, 0, 0));
	driver_free(driver);
}

/* Else each flush of a guest that writes to the same place again and again would write tables that say the same. */
static void test_what_is_written_over_in_its_new_place_is_told_but_once(void **state)
{
	struct driver *driver = driver_with_disk(ON_TMPFS, inline_io);
	struct buffer out = data_out(driver, PAGE, 3);
	vs_change changes[4];

	(void)state;
	for (uint32_t masks = 0; masks < 2; masks++) {
		vs_allocation allocation = copies;

		become_empty(driver);
		allocation.keeps_masks = masks;
		assert_int_equal(vs_volume_allocates(driver->volume, &allocation), 0);
		assert_good(command(driver, write_10(8, 8), &out, 1, NULL, 0), RESPONSE);
		assert_int_equal(vs_volume_commit_begin(driver->volume, changes, COUNT(changes), &failed), 1);
		assert_good(command(driver, write_10(8, 8), &out, 1, NULL, 0), RESPONSE);
		assert_int_equal(vs_volume_commit_end(driver->volume, 1), 0);
		assert_good(command(driver, write_10(8, 8), &out, 1, NULL, 0), RESPONSE);
		assert_int_equal(vs_volume_pending(driver->volume), 0);
	}
	driver_free(driver);
}

static void test_a_write_that_must_be_durable_never_takes_a_new_block_by_itself(void **state)
{
	struct driver *driver = driver_with_disk(ON_TMPFS, inline_io);
	struct buffer out = data_out(driver, PAGE, 3);
	struct cdb fua = write_10(8, 8);

	(void)state;
	become_empty(driver);
	fua.bytes[1] = 0x08;
	finish(driver, command(driver, fua, &out, 1, NULL, 0));
	assert_int_equal(vs_volume_pending(driver->volume), 0);
	driver_free(driver);
}

static void test_a_disk_in_a_second_file_is_flushed_there(void **state)
{
	struct driver *driver = driver_with_disk(ON_TMPFS, inline_io);
	const vs_lun_settings settings = open_lun();
	vs_volume *volume = vs_volume_new(DISK_LENGTH, 16);
	int pipes[2]; /* cannot be flushed */

	(void)state;
	assert_int_equal(pipe(pipes), 0);
	assert_int_equal(vs_volume_set_layer(volume, 0, driver->disk, VS_FILE_INSTANT, 1), 0);
	assert_int_equal(vs_volume_set_layer(volume, 1, pipes[1], VS_FILE_BLOCK_DEVICE, 1), 0);
	assert_int_equal(vs_volume_set_run(volume, 0, CLUSTERS, entry_of(VS_DATA, 1, 0)), 0);
	assert_int_equal(vs_lun_set(driver->device, 0, 0, volume, &settings), 0);
	finish(driver, command(driver, synchronize_cache_10(), NULL, 0, NULL, 0));
	close(pipes[0]);
	close(pipes[1]);
	driver_free(driver);
	vs_volume_release(volume);
}

static void test_unmapped_blocks_are_told_as_holes_and_their_room_is_let_go(void **state)
{
	struct driver *driver = driver_with_disk(ON_TMPFS, inline_io);
	struct buffer out = data_out(driver, PAGE, 3), in = data_in(driver, PAGE);
	vs_change changes[4];

	(void)state;
	become_empty(driver);
	assert_good(command(driver, write_10(8, 8), &out, 1, NULL, 0), RESPONSE);
	assert_good(command(driver, write_same_16(0, CLUSTER / BLOCK, true, true), NULL, 0, NULL, 0), RESPONSE);
	assert_good(command(driver, read_10(8, 8), NULL, 0, &in, 1), RESPONSE + PAGE);
	for (uint32_t i = 0; i < PAGE; i++)
		assert_int_equal(((const uint8_t *)driver_host(driver, in.guest))[i], 0);
	assert_int_equal(vs_volume_commit_begin(driver->volume, changes, COUNT(changes), &failed), 1);
	assert_int_equal(changes[0].entry, entry_of(VS_HOLE, 0, 0));
	assert_int_equal(changes[0].unused, entry_of(VS_DATA, 0, 0));
	assert_int_equal(vs_volume_commit_end(driver->volume, 1), 0);
	assert_int_equal(entry_at(driver->volume, 0), entry_of(VS_HOLE, 0, 0));
	driver_free(driver);
}

static void test_a_zeroing_that_was_committed_in_vain_is_told_again_before_later_writes(void **state)
{
	struct driver *driver = driver_with_disk(ON_TMPFS, inline_io);
	struct buffer out = data_out(driver, PAGE, 3);
	vs_change changes[4];

	(void)state;
	become_empty(driver);
	assert_int_equal(vs_volume_set_run(driver->volume, 0, 2, entry_of(VS_DATA, 0, CLUSTER)), 0);
	assert_good(command(driver, write_same_16(0, 2 * CLUSTER / BLOCK, true, true), NULL, 0, NULL, 0), RESPONSE);
	assert_int_equal(vs_volume_commit_begin(driver->volume, changes, COUNT(changes), &failed), 1);
	assert_int_equal(changes[0].blocks, 2);
	assert_good(command(driver, write_10(8, 8), &out, 1, NULL, 0), RESPONSE);
	assert_int_equal(vs_volume_commit_end(driver->volume, 0), 0);
	assert_int_equal(vs_volume_commit_begin(driver->volume, changes, COUNT(changes), &failed), 2);
	assert_int_equal(changes[0].entry, entry_of(VS_HOLE, 0, 0));
	assert_int_equal(changes[1].entry, entry_of(VS_DATA, 0, 0));
	assert_int_equal(vs_volume_commit_end(driver->volume, 1), 0);
	assert_int_equal(vs_volume_pending(driver->volume), 0);
	driver_free(driver);
}

/* Rows of zeros are told first, so a young one would keep an older write out, and a flush that waits for that. */
static void test_a_commit_that_has_no_room_for_all_changes_does_not_begin(void **state)
{
	struct driver *driver = driver_with_disk(ON_TMPFS, inline_io);
	struct buffer out = data_out(driver, PAGE, 3);
	vs_change changes[4];

	(void)state;
	become_empty(driver);
	assert_int_equal(vs_volume_set_run(driver->volume, 1, 1, entry_of(VS_DATA, 0, CLUSTER)), 0);
	assert_good(command(driver, write_10(8, 8), &out, 1, NULL, 0), RESPONSE);
	uint32_t room = (uint32_t)vs_volume_pending(driver->volume);
	struct cdb zeros = write_same_16(CLUSTER / BLOCK, CLUSTER / BLOCK, true, true);
	assert_good(command(driver, zeros, NULL, 0, NULL, 0), RESPONSE);
	assert_int_equal(vs_volume_commit_begin(driver->volume, changes, room, &failed), -E2BIG);
	assert_int_equal(vs_volume_pending(driver->volume), 2);
	assert_int_equal(vs_volume_commit_begin(driver->volume, changes, COUNT(changes), &failed), 2);
	assert_int_equal(changes[0].block, 1);
	assert_int_equal(changes[1].entry, entry_of(VS_DATA, 0, 0));
	assert_int_equal(vs_volume_commit_end(driver->volume, 1), 0);
	driver_free(driver);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_hole_after_a_block_that_cannot_be_read_makes_no_good_answer),
		cmocka_unit_test(test_a_write_to_a_hole_takes_a_new_block),
		cmocka_unit_test(test_what_is_written_over_in_its_new_place_is_told_but_once),
		cmocka_unit_test(test_a_write_that_must_be_durable_never_takes_a_new_block_by_itself),
		cmocka_unit_test(test_unmapped_blocks_are_told_as_holes_and_their_room_is_let_go),
		cmocka_unit_test(test_a_zeroing_that_was_committed_in_vain_is_told_again_before_later_writes),
		cmocka_unit_test(test_a_commit_that_has_no_room_for_all_changes_does_not_begin),
		cmocka_unit_test(test_a_disk_in_a_second_file_is_flushed_there),
	};

	return cmocka_run_group_tests_name("allocate", tests, NULL, NULL);
}
