/*
 * test_failing.c - what fails half-way, or waits while others go on, leaves the map and the tables in agreement. Memory is
 * short at a chosen call (the linker puts __wrap_calloc and __wrap_malloc in their place), files are opened one way only.
 */
#define _GNU_SOURCE
#include "../../vstore/dataplane/volume.h"
#include "commands.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int failed; /* the last commit_begin */

enum { SHIFT = 14, SIZE = 1 << SHIFT, UNIT = SIZE / 16, BLOCKS = 3 * PAGE_ENTRIES, NEVER = 0 };

static int short_at = NEVER; /* calls until there is no memory, once */

static bool is_short(void)
{
	if (!short_at || --short_at)
		return false;
	errno = ENOMEM;
	return true;
}

void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size)
{
	return is_short() ? NULL : __real_calloc(count, size);
}

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_malloc(size_t size)
{
	return is_short() ? NULL : __real_malloc(size);
}

static vs_volume *volume_with(uint64_t entry, const vs_allocation *allocation)
{
	vs_volume *volume = vs_volume_new((uint64_t)BLOCKS << SHIFT, SHIFT);

	assert_non_null(volume);
	for (uint32_t layer = 0; layer < 2; layer++)
		assert_int_equal(vs_volume_set_layer(volume, layer, -1, VS_FILE_NULL, 1), 0);
	assert_int_equal(vs_volume_allocates(volume, allocation), 0);
	assert_int_equal(vs_volume_set_run(volume, 0, BLOCKS, entry), 0);
	return volume;
}

static uint64_t state_at(vs_volume *volume, uint64_t block)
{
	uint64_t entry = 0;

	assert_int_equal(vs_volume_get_entry(volume, block, &entry), 0);
	return entry >> 60;
}

static const vs_allocation copies = {
	.sub_shift = 10, .own_layers = 1, .batch_limit = 64, .zero_entry = (uint64_t)VS_ZERO << 60
};
static const vs_allocation masks = {
	.sub_shift = 10, .keeps_masks = 1, .own_layers = 1, .batch_limit = 64, .zero_entry = (uint64_t)VS_ZERO << 60
};

/* Else the commit would make zeros of what is written there later. */
static void test_blocks_that_could_not_be_zeroed_are_not_told_as_zeroed(void **state)
{
	(void)state;
	for (int calls = 1; calls <= 8; calls++) {
		vs_volume *volume = volume_with(entry_of(VS_DATA, 0, 0), &copies);
		vs_change change = { 0 };

		short_at = calls;
		int error = vs_volume_zero(volume, 100ull << SHIFT, 1000ull << SHIFT, 1);
		bool met = !short_at;
		short_at = NEVER;
		assert_int_equal(error, met ? -ENOMEM : 0);
		int count = vs_volume_commit_begin(volume, &change, 1, &failed);
		assert_in_range(count, 0, 1);
		for (uint64_t block = 0; block < BLOCKS; block++) {
			bool told = count && block - change.block < change.blocks;
			assert_int_equal(state_at(volume, block), told ? VS_ZERO : VS_DATA);
		}
		vs_volume_release(volume);
	}
}

/* The image that it was asked of has changed: a block that is a snapshot's too now must not be written to in place. */
static void test_a_map_is_forgotten_even_without_memory(void **state)
{
	vs_volume *volume = volume_with(entry_of(VS_DATA, 0, 0), &copies);

	(void)state;
	assert_int_equal(vs_volume_set_run(volume, 0, 1, entry_of(VS_HOLE, 0, 0)), 0); /* so that there are pages */
	assert_int_equal(vs_volume_quiesce(volume), 0);
	short_at = 1;
	assert_int_equal(vs_volume_forget(volume), 0);
	assert_int_equal(short_at, NEVER);
	assert_int_equal(vs_volume_resume(volume), 0);
	for (uint64_t block = 0; block < BLOCKS; block++)
		assert_int_equal(state_at(volume, block), VS_NOT_LOADED);
	vs_volume_release(volume);
}

struct copying {
	vs_volume *volume;
	int error;
};

static void *copy_main(void *argument)
{
	struct copying *copying = argument;
	static const uint8_t composed[UNIT] = { 'o', 'l', 'd' };

	copying->error = vs_volume_copy_up(copying->volume, 0, composed, UNIT);
	return NULL;
}

static bool waits(vs_volume *volume, struct fresh *fresh)
{
	pthread_mutex_lock(&volume->lock);
	bool pinned = fresh->pins;
	pthread_mutex_unlock(&volume->lock);
	return pinned;
}

static void test_zeros_are_not_written_over_by_what_a_parent_had_compressed_there(void **state)
{
	vs_volume *volume = volume_with(entry_of(VS_COMPRESSED, 1, 0), &masks);
	struct copying copying = { .volume = volume, .error = 1 };
	struct extent extent;
	struct fresh *claim;
	pthread_t thread;

	(void)state;
	assert_int_equal(vs_volume_give(volume, 0, 0, 4, 0), 0);
	/* a write of another unit is under way, */
	uint32_t entered = epoch_enter(volume);
	assert_int_equal(allocate_claim(volume, 4 * UNIT, UNIT, &extent, &claim), 0);
	/* the unit before is to be made whole, which waits for it, */
	assert_int_equal(pthread_create(&thread, NULL, copy_main, &copying), 0);
	for (int i = 0; i < 20000 && !waits(volume, claim); i++)
		usleep(100);
	assert_true(waits(volume, claim));
	/* and is zeroed meanwhile */
	assert_int_equal(vs_volume_zero(volume, 0, UNIT, 1), 0);
	allocate_done(volume, claim, 4 * UNIT, UNIT, true);
	epoch_leave(volume, entered);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(copying.error, 0);
	assert_int_equal(volume_extent(volume, 0, UNIT).state, VS_ZERO);
	vs_volume_release(volume);
}

static void *commit_main(void *argument)
{
	struct copying *copying = argument;
	vs_change change;

	copying->error = vs_volume_commit_begin(copying->volume, &change, 1, &failed) - 1;
	return NULL;
}

static void test_writes_that_follow_each_other_do_not_keep_a_block_from_being_filled(void **state)
{
	vs_volume *volume = volume_with(entry_of(VS_SHARED, 1, 0), &copies);
	struct copying copying = { .volume = volume, .error = 1 };
	struct fresh *claim, *next;
	struct extent extent;
	pthread_t thread;

	(void)state;
	assert_int_equal(vs_volume_give(volume, 0, 0, 4, 0), 0);
	assert_int_equal(allocate_claim(volume, 0, UNIT, &extent, &claim), 0);
	assert_int_equal(pthread_create(&thread, NULL, commit_main, &copying), 0);
	for (int i = 0; i < 20000 && !waits(volume, claim); i++)
		usleep(100);
	/* before that one has ended */
	assert_int_equal(allocate_claim(volume, 0, UNIT, &extent, &next), -EAGAIN);
	allocate_done(volume, claim, 0, UNIT, true);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(copying.error, 0);
	assert_int_equal(vs_volume_commit_end(volume, 1), 0);
	vs_volume_release(volume);
}

static void test_a_place_that_could_not_be_written_to_is_still_there(void **state)
{
	vs_volume *volume = volume_with(entry_of(VS_COMPRESSED, 0, 0), &copies);
	static const uint8_t composed[SIZE];
	int unwritable = open("/dev/null", O_RDONLY | O_CLOEXEC);

	(void)state;
	assert_int_equal(vs_volume_set_layer(volume, 2, unwritable, 0, 1), 0);
	assert_int_equal(vs_volume_give(volume, 2, 0, 1, 0), 0);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(vs_volume_replace(volume, 7, composed, SIZE), -EBADF);
		assert_int_equal(vs_volume_window(volume), 1);
		assert_int_equal(state_at(volume, 7), VS_COMPRESSED);
	}
	assert_int_equal(vs_volume_pending(volume), 0);
	close(unwritable);
	vs_volume_release(volume);
}

static void test_a_volume_that_could_not_be_made_leaves_no_descriptor(void **state)
{
	int before = open("/dev/null", O_RDONLY | O_CLOEXEC);

	(void)state;
	close(before);
	for (int calls = 1; calls <= 2; calls++) {
		short_at = calls;
		assert_null(vs_volume_new(SIZE, SHIFT));
		assert_int_equal(errno, ENOMEM);
		assert_int_equal(short_at, 0);
	}
	int after = open("/dev/null", O_RDONLY | O_CLOEXEC);
	close(after);
	assert_int_equal(before, after);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_map_is_forgotten_even_without_memory),
		cmocka_unit_test(test_blocks_that_could_not_be_zeroed_are_not_told_as_zeroed),
		cmocka_unit_test(test_zeros_are_not_written_over_by_what_a_parent_had_compressed_there),
		cmocka_unit_test(test_writes_that_follow_each_other_do_not_keep_a_block_from_being_filled),
		cmocka_unit_test(test_a_place_that_could_not_be_written_to_is_still_there),
		cmocka_unit_test(test_a_volume_that_could_not_be_made_leaves_no_descriptor),
	};

	return cmocka_run_group_tests_name("failing", tests, NULL, NULL);
}
