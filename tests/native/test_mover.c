/*
 * test_mover.c - stretches of random pieces, copied by several threads: every byte where the places say, under sanitizers.
 */
#define _GNU_SOURCE
#include "../../vstore/dataplane/chunk.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

enum { DISK = 12 << 20, PIECES = 400, ROOMS = 3 };

static uint64_t seed = 88172645463325252ull;

static uint64_t draw(uint64_t below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed % below;
}

/* Half of its 4 KiB pages are zeros. */
static int source_file(uint8_t *bytes)
{
	int fd = memfd_create("source", 0);

	for (uint32_t at = 0; at < DISK; at += 4096)
		memset(bytes + at, draw(2) ? (int)draw(256) : 0, 4096);
	assert_int_equal(pwrite(fd, bytes, DISK, 0), DISK);
	return fd;
}

static uint32_t scatter(vs_piece *pieces, uint64_t end, int fd)
{
	uint32_t count = 0;

	for (uint64_t at = 512 * draw(9); at < end && count < PIECES;) {
		uint64_t length = 512 * (1 + draw(draw(4) ? 40 : 4000));
		length = length < end - at ? length : end - at;
		pieces[count++] = (vs_piece){ at, length, 512 * draw((DISK - length) / 512 + 1), fd };
		at += length + 512 * draw(draw(3) ? 20 : 5000);
	}
	return count;
}

static void draw_disk(uint8_t *disk, const uint8_t *bytes, const vs_piece *pieces, uint32_t count)
{
	memset(disk, 0, DISK);
	for (uint32_t n = 0; n < count; n++)
		memcpy(disk + pieces[n].start, bytes + pieces[n].offset, pieces[n].length);
}

static bool zeros(const uint8_t *bytes, uint64_t length)
{
	return !bytes[0] && !memcmp(bytes, bytes + 1, length - 1);
}

static void compare(const uint8_t *disk, uint64_t end, uint64_t unit, const uint64_t *places, int target)
{
	uint8_t *found = malloc(unit);
	uint64_t last = 0;

	for (uint64_t n = 0; n * unit < end; n++) {
		uint64_t length = end - n * unit < unit ? end - n * unit : unit;

		if (zeros(disk + n * unit, length)) {
			assert_int_equal(places[n], UINT64_MAX);
			continue;
		}
		assert_true(places[n] > last);
		last = places[n];
		assert_int_equal(pread(target, found, length, (off_t)places[n]), length);
		assert_memory_equal(found, disk + n * unit, length);
	}
	free(found);
}

static void await(vs_mover *mover, uint64_t end)
{
	uint64_t reached = 0;
	int error;

	do
		error = vs_mover_wait(mover, 0, &reached);
	while (error == -ETIMEDOUT);
	assert_int_equal(error, 0);
	assert_in_range(reached, 1, end);
}

/* Two stretches at a time, each of the whole disk, into rooms that go on. */
static void copies_random_pieces(void **state)
{
	static uint8_t bytes[DISK], disk[LINE][DISK];
	static uint64_t places[LINE][DISK / 512];
	static vs_piece pieces[LINE][PIECES];
	int source = source_file(bytes);

	(void)state;
	for (uint32_t round = 0; round < 24; round++) {
		uint64_t unit = 512ull << draw(13), end = DISK - 512 * draw(3000);
		int target = memfd_create("target", 0);
		vs_mover *mover = vs_mover_new(target, unit, 1 + (uint32_t)draw(5));

		assert_non_null(mover);
		for (uint64_t stretch = 0; stretch < 4; stretch++) {
			uint32_t slot = stretch % LINE;
			const uint64_t at = stretch * (64 << 20);
			const vs_room rooms[ROOMS] = { { at + unit, unit },
						       { at + 4 * unit, 2 * unit },
						       { at + 16 * unit, 16 << 20 } };
			const vs_stretch now = { .end = end,
						 .pieces = pieces[slot],
						 .rooms = rooms,
						 .places = places[slot],
						 .piece_count = scatter(pieces[slot], end, source),
						 .room_count = ROOMS };

			draw_disk(disk[slot], bytes, pieces[slot], now.piece_count);
			assert_int_equal(vs_mover_start(mover, &now), 0);
			if (stretch) {
				assert_int_equal(vs_mover_start(mover, &now), -EBUSY);
				await(mover, end);
				compare(disk[!slot], end, unit, places[!slot], target);
			}
		}
		await(mover, end);
		compare(disk[1], end, unit, places[1], target);
		vs_mover_free(mover);
		close(target);
	}
	close(source);
}

static void ends_at_the_first_error(void **state)
{
	static uint8_t bytes[DISK];
	int source = source_file(bytes), target = memfd_create("target", 0);
	uint64_t reached;

	(void)state;
	for (uint32_t threads = 1; threads < 5; threads++) {
		vs_mover *mover = vs_mover_new(target, 4096, threads);
		const vs_piece pieces[] = { { 0, DISK / 2, 0, source }, { DISK / 2, DISK / 2, 0, -1 } };
		const vs_stretch broken = { .end = DISK, .pieces = pieces, .piece_count = 2 },
				 whole = { .end = DISK, .pieces = pieces, .piece_count = 1 };

		assert_int_equal(vs_mover_start(mover, &broken), 0);
		assert_int_equal(vs_mover_wait(mover, 10000, &reached), -EBADF);
		assert_int_equal(vs_mover_start(mover, &whole), -EBADF);
		vs_mover_free(mover);
	}
	close(target);
	close(source);
}

static void is_freed_while_it_works(void **state)
{
	static uint8_t bytes[DISK];
	int source = source_file(bytes), target = memfd_create("target", 0);

	(void)state;
	for (uint32_t round = 0; round < 20; round++) {
		vs_mover *mover = vs_mover_new(target, 4096, 3);
		const vs_piece piece = { 0, DISK, 0, source };
		const vs_stretch now = { .end = DISK, .pieces = &piece, .piece_count = 1 };

		assert_int_equal(vs_mover_start(mover, &now), 0);
		usleep((useconds_t)draw(3000));
		vs_mover_free(mover);
	}
	vs_mover_free(NULL);
	close(target);
	close(source);
}

static void long_units_are_copied_with_room_for_two(void **state)
{
	enum { LONG = 32 << 20, END = 3 * LONG - 512 };
	int source = memfd_create("source", 0), target = memfd_create("target", 0);
	vs_mover *mover = vs_mover_new(target, LONG, 3);
	const vs_piece pieces[] = { { 512, 512, 0, source }, { 2 * LONG, LONG - 512, 0, source } };
	const vs_room room = { LONG, 2 * LONG };
	uint64_t places[3], bytes = 0, reached;
	const vs_stretch now = {
		.end = END, .pieces = pieces, .rooms = &room, .places = places, .piece_count = 2, .room_count = 1
	};
	uint8_t found;

	(void)state;
	assert_non_null(mover);
	for (uint32_t n = 0; n < SLOTS; n++)
		bytes += mover->chunks[n].bytes ? mover->chunk : 0;
	assert_int_equal(bytes, 2 * LONG);
	assert_int_equal(ftruncate(source, LONG), 0);
	assert_int_equal(pwrite(source, "A", 1, 0), 1);
	assert_int_equal(vs_mover_start(mover, &now), 0);
	assert_int_equal(vs_mover_wait(mover, 10000, &reached), 0);
	assert_int_equal(places[0], LONG);
	assert_int_equal(places[1], UINT64_MAX);
	assert_int_equal(places[2], 2 * LONG);
	for (uint32_t n = 0; n < 2; n++) {
		assert_int_equal(pread(target, &found, 1, (off_t)(pieces[n].start + LONG - n * LONG)), 1);
		assert_int_equal(found, 'A');
	}
	vs_mover_free(mover);
	close(target);
	close(source);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(copies_random_pieces),
		cmocka_unit_test(ends_at_the_first_error),
		cmocka_unit_test(is_freed_while_it_works),
		cmocka_unit_test(long_units_are_copied_with_room_for_two),
	};

	return cmocka_run_group_tests_name("mover", tests, NULL, NULL);
}
