/*
 * test_map.c - the block map in pages: each stored whole or not at all, let go of when it is cold, forgotten on demand.
 */
#define _GNU_SOURCE
#include "../../vstore/dataplane/volume.h"
#include "commands.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

static int failed; /* the last commit_begin */

enum { SHIFT = 12, PAGES = 1024, LIMIT = 1 << 20, THREADS = 3, READS = 4000 };

static const vs_allocation copies = { .sub_shift = SHIFT, .own_layers = 1, .batch_limit = 64 };
static const vs_allocation masks = { .sub_shift = 9, .keeps_masks = 1, .own_layers = 1, .batch_limit = 64 };
static const uint64_t blocks = PAGES * (uint64_t)PAGE_ENTRIES;

/* Every second block a hole, so that no page is a run. */
static void load(vs_volume *volume, uint64_t page)
{
	uint64_t entries[PAGE_ENTRIES];

	for (uint32_t i = 0; i < PAGE_ENTRIES; i++)
		entries[i] = entry_of(i % 2 ? VS_HOLE : VS_ZERO, 0, 0);
	assert_int_equal(vs_volume_set_entries(volume, page * PAGE_ENTRIES, PAGE_ENTRIES, entries), 0);
}

static uint64_t state_at(vs_volume *volume, uint64_t block)
{
	uint64_t entry = 0;

	assert_int_equal(vs_volume_get_entry(volume, block, &entry), 0);
	return entry >> 60;
}

static vs_volume *new_map(void)
{
	vs_volume *volume = vs_volume_new(blocks << SHIFT, SHIFT);

	assert_non_null(volume);
	assert_int_equal(vs_volume_set_layer(volume, 0, -1, VS_FILE_NULL, 1), 0);
	assert_int_equal(vs_volume_set_map_limit(volume, LIMIT), 0);
	return volume;
}

static void test_cold_pages_go_and_those_in_use_stay(void **state)
{
	vs_volume *volume = new_map();
	uint64_t loaded = 0;

	(void)state;
	for (uint64_t page = 0; page < PAGES; page++) {
		load(volume, page);
		assert_int_equal(state_at(volume, page * PAGE_ENTRIES), VS_ZERO);
		assert_int_equal(state_at(volume, 5 * (uint64_t)PAGE_ENTRIES), page < 5 ? VS_NOT_LOADED : VS_ZERO);
	}
	assert_in_range(volume->held_count, LIMIT / PAGE / 2, LIMIT / PAGE);
	for (uint64_t page = 0; page < PAGES; page++)
		loaded += state_at(volume, page * PAGE_ENTRIES) != VS_NOT_LOADED;
	assert_int_equal(loaded, volume->held_count);
	assert_int_equal(vs_volume_set_map_limit(volume, 1000), -EINVAL);
	vs_volume_release(volume);
}

static void test_dropped_pages_do_not_pile_up(void **state)
{
	vs_volume *volume = new_map();

	(void)state;
	for (uint64_t page = 0; page < 4 * PAGES; page++)
		load(volume, page % PAGES);
	assert_in_range(volume->retired_count, 0, 512);
	vs_volume_release(volume);
}

static void test_what_no_commit_has_told_of_is_never_dropped(void **state)
{
	vs_volume *volume = new_map();
	uint8_t bytes[PAGE] = { 1 };
	vs_change changes[2];

	(void)state;
	assert_int_equal(vs_volume_allocates(volume, &copies), 0);
	assert_int_equal(vs_volume_give(volume, 0, 0, 8, 0), 0);
	load(volume, 7);
	assert_int_equal(vs_volume_write(volume, 7 * (uint64_t)PAGE_ENTRIES << SHIFT, bytes, PAGE), 0);
	for (uint64_t page = 8; page < PAGES; page++)
		load(volume, page);
	assert_int_equal(state_at(volume, 7 * (uint64_t)PAGE_ENTRIES), STATE_FRESH);
	assert_int_equal(vs_volume_commit_begin(volume, changes, COUNT(changes), &failed), 1);
	assert_int_equal(vs_volume_commit_end(volume, 1), 0);
	assert_int_equal(state_at(volume, 7 * (uint64_t)PAGE_ENTRIES), VS_DATA);
	for (uint64_t page = 8; page < PAGES; page++)
		load(volume, page);
	assert_int_equal(state_at(volume, 7 * (uint64_t)PAGE_ENTRIES), VS_NOT_LOADED);
	vs_volume_release(volume);
}

static void test_idle_records_of_partial_blocks_go_with_their_page(void **state)
{
	vs_volume *volume = new_map();
	uint64_t entries[PAGE_ENTRIES];
	vs_partial partials[64];

	(void)state;
	for (uint32_t i = 0; i < PAGE_ENTRIES; i++)
		entries[i] = entry_of(i % 8 ? VS_HOLE : VS_PARTIAL, 0, 0);
	for (uint32_t i = 0; i < COUNT(partials); i++)
		partials[i] = (vs_partial){ entry_of(VS_ZERO, 0, 0), 5, 0, 0 };
	assert_int_equal(vs_volume_allocates(volume, &masks), 0);
	for (uint64_t page = 0; page < PAGES; page++)
		assert_int_equal(vs_volume_set_partials(volume, page * PAGE_ENTRIES, PAGE_ENTRIES, entries, partials),
				 0);
	assert_in_range(volume->records, 64, LIMIT / sizeof(struct fresh));
	assert_in_range(volume->held_count * sizeof(uint64_t) * PAGE_ENTRIES, PAGE, LIMIT);
	vs_volume_release(volume);
}

static void test_a_page_is_loaded_whole_or_not_at_all(void **state)
{
	vs_volume *volume = new_map();
	uint64_t entries[PAGE_ENTRIES];
	uint8_t bytes[PAGE] = { 1 };

	(void)state;
	for (uint32_t i = 0; i < PAGE_ENTRIES; i++)
		entries[i] = entry_of(VS_HOLE, 0, 0);
	static const uint64_t bad[] = { 5, (uint64_t)VS_DATA << 60 | 9ull << 48, 7ull << 60 };
	for (uint32_t i = 0; i < COUNT(bad); i++) {
		entries[300] = bad[i];
		assert_int_equal(vs_volume_set_entries(volume, 512, PAGE_ENTRIES, entries), -EINVAL);
		assert_int_equal(vs_volume_set_run(volume, 512, PAGE_ENTRIES, bad[i]), -EINVAL);
		assert_int_equal(state_at(volume, 512), VS_NOT_LOADED);
	}
	entries[300] = entries[0];
	assert_int_equal(vs_volume_set_entries(volume, 512, PAGE_ENTRIES, entries), 0);
	assert_int_equal(vs_volume_allocates(volume, &copies), 0);
	assert_int_equal(vs_volume_give(volume, 0, 0, 8, 0), 0);
	assert_int_equal(vs_volume_write(volume, 600ull << SHIFT, bytes, PAGE), 0);
	assert_int_equal(vs_volume_set_entries(volume, 512, PAGE_ENTRIES, entries), -EBUSY);
	assert_int_equal(state_at(volume, 600), STATE_FRESH);
	vs_volume_release(volume);
}

static void test_partial_blocks_are_loaded_with_their_page_or_not_at_all(void **state)
{
	const uint64_t entries[] = { entry_of(VS_PARTIAL, 0, 0), entry_of(VS_HOLE, 0, 0), entry_of(VS_PARTIAL, 0, 8) };
	vs_partial partials[] = { { entry_of(VS_ZERO, 0, 0), 1, 2, 0 }, { entry_of(VS_HOLE, 0, 0), 4, 4, 0 } };
	vs_volume *volume = new_map();
	uint64_t first = 510, count = 4;

	(void)state;
	assert_int_equal(vs_volume_set_partials(volume, 512, 3, entries, partials), -EINVAL); /* it keeps no masks */
	assert_int_equal(vs_volume_allocates(volume, &masks), 0);
	assert_int_equal(vs_volume_set_partials(volume, 512, 3, entries, partials), -EINVAL); /* both at once */
	assert_int_equal(vs_volume_set_partials(volume, 511, 3, entries, partials), -EINVAL); /* two pages */
	assert_int_equal(vs_volume_not_loaded(volume, &first, &count), 1);
	assert_true(first == 510 && count == 4);
	partials[1].zero = 8;
	assert_int_equal(vs_volume_set_partials(volume, 512, 3, entries, partials), 0);
	assert_int_equal(volume->records, 2);
	assert_int_equal(state_at(volume, 514), STATE_FRESH);
	first = 512, count = 3;
	assert_int_equal(vs_volume_not_loaded(volume, &first, &count), 0);
	first = 512, count = 30;
	assert_int_equal(vs_volume_not_loaded(volume, &first, &count), 1);
	assert_true(first == 515 && count == 27);
	assert_int_equal(vs_volume_set_partials(volume, 512, 3, entries, partials), -EBUSY);
	vs_volume_release(volume);
}

static void test_the_only_block_of_a_disk_may_be_partial(void **state)
{
	const uint64_t entry = entry_of(VS_PARTIAL, 0, 0);
	const vs_partial partial = { entry_of(VS_ZERO, 0, 0), 0, 1, 0 };
	vs_volume *volume = vs_volume_new(1ull << SHIFT, SHIFT);

	(void)state;
	assert_int_equal(vs_volume_set_layer(volume, 0, -1, VS_FILE_NULL, 1), 0);
	assert_int_equal(vs_volume_allocates(volume, &masks), 0);
	assert_int_equal(vs_volume_set_partials(volume, 0, 1, &entry, &partial), 0);
	assert_int_equal(volume->held_count, 1);
	vs_volume_release(volume);
}

static void test_forget_makes_every_block_not_loaded(void **state)
{
	vs_volume *volume = new_map();
	uint8_t bytes[PAGE] = { 1 };
	vs_change change;

	(void)state;
	load(volume, 0);
	assert_int_equal(vs_volume_set_run(volume, 512, 512, entry_of(VS_HOLE, 0, 0)), 0);
	assert_int_equal(vs_volume_allocates(volume, &copies), 0);
	assert_int_equal(vs_volume_give(volume, 0, 0, 8, 0), 0);
	assert_int_equal(vs_volume_forget(volume), -EBUSY);
	assert_int_equal(vs_volume_write(volume, 600ull << SHIFT, bytes, PAGE), 0);
	assert_int_equal(vs_volume_quiesce(volume), 0);
	assert_int_equal(vs_volume_forget(volume), -EBUSY);
	assert_int_equal(vs_volume_commit_begin(volume, &change, 1, &failed), 1);
	assert_int_equal(vs_volume_forget(volume), -EBUSY);
	assert_int_equal(vs_volume_commit_end(volume, 1), 0);
	assert_int_equal(vs_volume_forget(volume), 0);
	assert_int_equal(state_at(volume, 0), VS_NOT_LOADED);
	assert_int_equal(state_at(volume, 600), VS_NOT_LOADED);
	assert_int_equal(volume->held_count, 0);
	assert_int_equal(vs_volume_resume(volume), 0);
	assert_int_equal(vs_volume_read(volume, 0, bytes, PAGE), -ENODATA);
	vs_volume_release(volume);
}

/* ---- pages that come and go under readers ----------------------------------------------------------- */

static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;

/* As vstore.block_map does it. */
static void *read_main(void *argument)
{
	vs_volume *volume = argument;
	uint64_t draw = (uintptr_t)&draw;
	uint8_t bytes[PAGE], zeros[PAGE] = { 0 };

	for (uint32_t i = 0; i < READS; i++) {
		draw = draw * 6364136223846793005u + 1442695040888963407u;
		uint64_t block = (draw >> 33) % blocks;

		memset(bytes, 0xAA, PAGE);
		while (vs_volume_read(volume, block << SHIFT, bytes, PAGE)) {
			pthread_mutex_lock(&loading);
			if (state_at(volume, block / PAGE_ENTRIES * PAGE_ENTRIES) == VS_NOT_LOADED)
				load(volume, block / PAGE_ENTRIES);
			pthread_mutex_unlock(&loading);
		}
		if (memcmp(bytes, zeros, PAGE))
			return argument;
	}
	return NULL;
}

static void test_readers_get_by_while_pages_come_and_go(void **state)
{
	vs_volume *volume = new_map();
	pthread_t threads[THREADS];
	void *failed;

	(void)state;
	for (uint32_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, read_main, volume), 0);
	for (uint32_t i = 0; i < THREADS; i++) {
		assert_int_equal(pthread_join(threads[i], &failed), 0);
		assert_null(failed);
	}
	vs_volume_release(volume);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_cold_pages_go_and_those_in_use_stay),
		cmocka_unit_test(test_dropped_pages_do_not_pile_up),
		cmocka_unit_test(test_what_no_commit_has_told_of_is_never_dropped),
		cmocka_unit_test(test_idle_records_of_partial_blocks_go_with_their_page),
		cmocka_unit_test(test_a_page_is_loaded_whole_or_not_at_all),
		cmocka_unit_test(test_partial_blocks_are_loaded_with_their_page_or_not_at_all),
		cmocka_unit_test(test_the_only_block_of_a_disk_may_be_partial),
		cmocka_unit_test(test_forget_makes_every_block_not_loaded),
		cmocka_unit_test(test_readers_get_by_while_pages_come_and_go),
	};

	return cmocka_run_group_tests_name("map", tests, NULL, NULL);
}
