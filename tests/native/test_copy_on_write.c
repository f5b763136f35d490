/*
 * test_copy_on_write.c - threads that write, zero and read in the same blocks while commits succeed and fail beside them, and
 * places that were let go are handed out again. Each thread owns stripes shorter than a unit, and knows what is in them.
 *
 *     workers: model of their stripes <--> volume <-- commits: the tables as a format would have them on disk
 */
#define _GNU_SOURCE
#include "commands.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SHIFT = 14, SIZE = 1 << SHIFT, BLOCKS = 24, LENGTH = BLOCKS * SIZE - 3000, UNIT = 1024, WORKERS = 3 };
enum { STRIPE = 700, STEPS = 60, ROUNDS = 40, ZEROED = 4 * SIZE, PLACES = 200 };

struct table { /* of one block, as it is on disk */
	uint64_t entry, allocated, zero;
};

struct scene {
	vs_volume *volume;
	int top, parent;
	uint32_t seed;
	uint8_t model[BLOCKS * SIZE], beneath[BLOCKS * SIZE];
	struct table tables[BLOCKS];
	bool used[PLACES];
	_Atomic bool done, failed;
};

struct worker {
	struct scene *scene;
	uint32_t number;
	pthread_t thread;
};

static uint32_t draw(uint32_t *state, uint32_t limit)
{
	*state = *state * 1664525 + 1013904223;
	return (*state >> 8) % limit;
}

static uint64_t place_of(uint64_t entry)
{
	return (entry & ((1ull << 48) - 1)) << 9 >> SHIFT;
}

static void give(struct scene *scene)
{
	vs_volume_drain(scene->volume);
	for (uint32_t place = 0, given = 0; place < PLACES && given < 4; place++) {
		if (scene->used[place])
			continue;
		scene->used[place] = true;
		given++;
		if (vs_volume_give(scene->volume, 0, (uint64_t)place << SHIFT, 1, 0))
			scene->failed = true;
	}
}

/* What a format does: tables first, then what they no longer name is free. */
static void apply(struct scene *scene, const vs_change *change)
{
	for (uint64_t block = change->block; block < change->block + change->blocks; block++) {
		struct table *table = &scene->tables[block], old = *table;
		bool placed = change->entry >> 60 == VS_DATA || (change->entry & ((1ull << 60) - 1));

		*table = (struct table){ change->entry, change->allocated, change->zero };
		bool had = old.entry >> 60 == VS_DATA || (old.entry >> 60 == VS_PARTIAL && old.entry << 4);
		if (had && (!placed || place_of(old.entry) != place_of(change->entry)))
			scene->used[place_of(old.entry)] = false;
	}
	if (change->unused)
		scene->used[place_of(change->unused)] = false;
}

static void *commit_main(void *argument)
{
	struct scene *scene = argument;
	vs_change changes[2 * BLOCKS];
	uint32_t state = scene->seed + 7;
	bool last = false;
	int failed;

	while (!last && !scene->failed) {
		last = scene->done;
		if (vs_volume_window(scene->volume) < 4)
			give(scene);
		int count = vs_volume_commit_begin(scene->volume, changes, COUNT(changes), &failed);
		bool well = last || draw(&state, 4);
		for (int i = 0; i < count; i++) {
			if (well)
				apply(scene, &changes[i]);
			else if (changes[i].unused)
				scene->used[place_of(changes[i].unused)] = false;
		}
		if (count < 0 || (failed && failed != -ENOBUFS) || vs_volume_commit_end(scene->volume, well))
			scene->failed = true;
		last &= !vs_volume_pending(scene->volume);
		usleep(100);
	}
	return NULL;
}

static void step(struct scene *scene, uint64_t offset, uint64_t length, uint32_t *state)
{
	uint8_t buffer[STRIPE], *model = scene->model + offset;
	uint32_t kind = draw(state, 4);
	int error;

	if (!kind) {
		error = vs_volume_read(scene->volume, offset, buffer, length);
		if (error || memcmp(buffer, model, length))
			scene->failed = true;
		return;
	}
	memset(buffer, kind == 1 ? 0 : (int)draw(state, 255) + 1, length);
	do
		error = kind == 1 ? vs_volume_zero(scene->volume, offset, length, 1)
				  : vs_volume_write(scene->volume, offset, buffer, length);
	while (error == -ENOBUFS && !scene->failed && !usleep(100));
	if (error)
		scene->failed = true;
	memcpy(model, buffer, length);
}

static void *worker_main(void *argument)
{
	struct worker *worker = argument;
	struct scene *scene = worker->scene;
	uint32_t state = scene->seed + worker->number, stripes = (LENGTH - ZEROED) / STRIPE / WORKERS;

	for (uint32_t i = 0; i < STEPS && !scene->failed; i++) {
		uint64_t begin = ZEROED + (uint64_t)(draw(&state, stripes) * WORKERS + worker->number) * STRIPE;
		uint64_t from = draw(&state, 3) ? 0 : draw(&state, STRIPE);

		step(scene, begin + from, STRIPE - from, &state);
	}
	return NULL;
}

/* The first blocks belong to one thread alone, which zeroes whole blocks and units as well. */
static void *zero_main(void *argument)
{
	struct scene *scene = argument;
	uint32_t state = scene->seed + 99;

	for (uint32_t i = 0; i < STEPS && !scene->failed; i++) {
		uint64_t first = draw(&state, ZEROED / UNIT) * UNIT, most = ZEROED - first;
		uint64_t length = draw(&state, 2) ? most : UNIT;

		if (draw(&state, 3)) {
			step(scene, first + draw(&state, UNIT - STRIPE), STRIPE, &state);
			continue;
		}
		int error = vs_volume_zero(scene->volume, first, length, 1);
		while (error == -ENOBUFS && !scene->failed && !usleep(100))
			error = vs_volume_zero(scene->volume, first, length, 1);
		if (error)
			scene->failed = true;
		memset(scene->model + first, 0, length);
	}
	return NULL;
}

/* A byte as the tables on disk tell it. */
static uint8_t on_disk(const struct scene *scene, const uint8_t *top, uint64_t offset)
{
	const struct table *table = &scene->tables[offset >> SHIFT];
	uint64_t unit = (offset & (SIZE - 1)) / UNIT, state = table->entry >> 60;

	if (state == VS_ZERO || (state == VS_PARTIAL && table->zero >> unit & 1))
		return 0;
	if (state == VS_DATA || (state == VS_PARTIAL && table->allocated >> unit & 1))
		return top[(place_of(table->entry) << SHIFT) + (offset & (SIZE - 1))];
	return scene->beneath[offset];
}

static void run(bool masks, uint32_t seed)
{
	struct scene *scene = calloc(1, sizeof(*scene));
	const vs_allocation allocation = { .sub_shift = 10,
					   .keeps_masks = masks,
					   .own_layers = 1,
					   .batch_limit = 8,
					   .zero_entry = (uint64_t)VS_ZERO << 60 };
	struct worker workers[WORKERS];
	pthread_t commits, zeroes;

	assert_non_null(scene);
	scene->seed = seed;
	scene->volume = vs_volume_new(LENGTH, SHIFT);
	scene->top = memfd_create("top", 0);
	scene->parent = memfd_create("parent", 0);
	for (uint32_t i = 0; i < LENGTH; i++)
		scene->beneath[i] = i < LENGTH / 2 ? (uint8_t)(i / 100 + 1) : 0;
	memcpy(scene->model, scene->beneath, sizeof(scene->model));
	assert_int_equal(write(scene->parent, scene->beneath, sizeof(scene->beneath)), sizeof(scene->beneath));
	assert_int_equal(vs_volume_set_layer(scene->volume, 0, scene->top, VS_FILE_INSTANT, 1), 0);
	assert_int_equal(vs_volume_set_layer(scene->volume, 1, scene->parent, VS_FILE_INSTANT | VS_FILE_READ_ONLY, 1),
			 0);
	assert_int_equal(vs_volume_set_run(scene->volume, 0, BLOCKS, entry_of(VS_SHARED, 1, 0)), 0);
	assert_int_equal(vs_volume_allocates(scene->volume, &allocation), 0);
	assert_int_equal(pthread_create(&commits, NULL, commit_main, scene), 0);
	assert_int_equal(pthread_create(&zeroes, NULL, zero_main, scene), 0);
	for (uint32_t i = 0; i < WORKERS; i++) {
		workers[i] = (struct worker){ .scene = scene, .number = i };
		assert_int_equal(pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]), 0);
	}
	for (uint32_t i = 0; i < WORKERS; i++)
		pthread_join(workers[i].thread, NULL);
	pthread_join(zeroes, NULL);
	scene->done = true;
	pthread_join(commits, NULL);
	assert_false(scene->failed);
	uint8_t *top = calloc(PLACES, SIZE);
	assert_true(pread(scene->top, top, (size_t)PLACES * SIZE, 0) > 0);
	for (uint64_t offset = 0; offset < LENGTH; offset++)
		assert_int_equal(on_disk(scene, top, offset), scene->model[offset]);
	free(top);
	vs_volume_release(scene->volume);
	close(scene->top);
	close(scene->parent);
	free(scene);
}

static void test_no_write_is_lost_where_blocks_are_filled(void **state)
{
	(void)state;
	for (uint32_t round = 0; round < ROUNDS; round++)
		run(false, round * 1000);
}

static void test_no_write_is_lost_where_the_format_keeps_masks(void **state)
{
	(void)state;
	for (uint32_t round = 0; round < ROUNDS; round++)
		run(true, round * 1000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_no_write_is_lost_where_blocks_are_filled),
		cmocka_unit_test(test_no_write_is_lost_where_the_format_keeps_masks),
	};

	return cmocka_run_group_tests_name("copy on write", tests, NULL, NULL);
}
