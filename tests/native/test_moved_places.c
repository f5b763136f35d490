/*
 * test_moved_places.c - places that go from block to block: nobody who began to read before a drain sees what comes after.
 *
 *     blocks 0..7, each full of its own number       a free place
 *        readers (two threads, a guest) ----------->  every block, again and again
 *        mover: block -> free place, drain, give the old place back; the next block goes there
 */
#define _GNU_SOURCE
#include "commands.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

enum { RESPONSE = sizeof(struct virtio_scsi_cmd_resp), BLOCKS = 8, TURNS = 400 };

static const vs_allocation copies = { .sub_shift = 12, .own_layers = 1, .batch_limit = 64 };
static _Atomic bool moving;
static int failed; /* the last commit_begin */

/* Each block is full of its own number, wherever it lies; its place goes to another block as soon as drain returns. */
static void fill(uint8_t *bytes, uint64_t block)
{
	for (uint32_t i = 0; i < PAGE / 8; i++)
		memcpy(bytes + 8 * i, &(uint64_t){ block + 1 }, 8);
}

static bool is_full_of(const uint8_t *bytes, uint64_t block)
{
	uint8_t wanted[PAGE];

	fill(wanted, block);
	return !memcmp(bytes, wanted, PAGE);
}

struct reader {
	vs_volume *volume;
	int result;
	pthread_t thread;
};

static void *reader_main(void *argument)
{
	struct reader *reader = argument;
	uint8_t bytes[PAGE];

	for (uint64_t block = 0; moving && !reader->result; block = (block + 1) % BLOCKS) {
		reader->result = vs_volume_read(reader->volume, block * PAGE, bytes, PAGE);
		if (!reader->result && !is_full_of(bytes, block))
			reader->result = -EILSEQ;
	}
	return NULL;
}

struct guest {
	struct driver *driver;
	struct buffer chains[BLOCKS][3];
	pthread_t thread;
	bool failed;
};

/* All blocks at once, again and again. */
static void *guest_main(void *argument)
{
	struct guest *guest = argument;

	while (moving && !guest->failed) {
		for (uint32_t i = 0; i < BLOCKS; i++)
			driver_offer(guest->driver, REQUEST, driver_chain(guest->driver, REQUEST, guest->chains[i], 3));
		driver_kick(guest->driver, REQUEST);
		for (uint32_t i = 0; i < BLOCKS && !guest->failed; i++) {
			struct vring_used_elem used;

			guest->failed =
				!driver_wait(guest->driver, REQUEST) || !driver_used(guest->driver, REQUEST, &used);
		}
		for (uint32_t i = 0; i < BLOCKS; i++)
			if (!is_full_of(driver_host(guest->driver, guest->chains[i][2].guest), i))
				guest->failed = true;
	}
	return NULL;
}

static void begin(struct guest *guest, struct driver *driver)
{
	guest->driver = driver;
	guest->failed = false;
	for (uint32_t i = 0; i < BLOCKS; i++) {
		guest->chains[i][0] = (struct buffer){ new_header(driver, read_10(8 * i, 8), i), 51, false };
		guest->chains[i][1] = (struct buffer){ new_response(driver), RESPONSE, true };
		guest->chains[i][2] = data_in(driver, PAGE);
	}
	assert_int_equal(pthread_create(&guest->thread, NULL, guest_main, guest), 0);
}

static uint64_t entry_at(vs_volume *volume, uint64_t block)
{
	uint64_t entry = 0;

	assert_int_equal(vs_volume_get_entry(volume, block, &entry), 0);
	return entry;
}

/* The block gets the one place that is free, and its old one becomes the free one. */
static void move(vs_volume *volume, uint64_t block)
{
	uint64_t old = entry_at(volume, block) & ((1ull << 48) - 1);
	_Alignas(PAGE) uint8_t bytes[PAGE];
	vs_change change;

	fill(bytes, block);
	assert_int_equal(vs_volume_set_run(volume, block, 1, (uint64_t)VS_SHARED << 60 | old), 0);
	assert_int_equal(vs_volume_write(volume, block * PAGE, bytes, PAGE), 0);
	assert_int_equal(vs_volume_commit_begin(volume, &change, 1, &failed), 1);
	assert_int_equal(vs_volume_commit_end(volume, 1), 0);
	assert_int_equal(vs_volume_drain(volume), 0);
	assert_int_equal(vs_volume_give(volume, 0, old << 9, 1, 0), 0);
}

/* The driver's LUN gets a volume of small blocks in the file that it had. */
static void become_movable(struct driver *driver, enum medium medium)
{
	vs_lun_settings settings = open_lun();
	vs_volume *volume = vs_volume_new(DISK_LENGTH, 12);
	bool direct = medium == ON_DISK_DIRECT;
	_Alignas(PAGE) uint8_t bytes[PAGE];

	assert_non_null(volume);
	assert_int_equal(vs_volume_set_layer(volume, 0, driver->disk, direct ? VS_FILE_DIRECT : VS_FILE_INSTANT,
					     direct ? PAGE : 1),
			 0);
	assert_int_equal(vs_volume_set_run(volume, 0, DISK_LENGTH / PAGE, entry_of(VS_DATA, 0, 0)), 0);
	for (uint64_t block = 0; block < BLOCKS; block++) {
		fill(bytes, block);
		assert_int_equal(vs_volume_write(volume, block * PAGE, bytes, PAGE), 0);
	}
	assert_int_equal(vs_volume_allocates(volume, &copies), 0);
	assert_int_equal(vs_volume_give(volume, 0, DISK_LENGTH - PAGE, 1, 0), 0);
	assert_int_equal(vs_lun_set(driver->device, 0, 0, volume, &settings), 0);
	vs_volume_release(driver->volume);
	driver->volume = volume;
}

static void test_no_reader_sees_what_came_to_the_place_that_its_block_left(void **state)
{
	static const enum medium media[] = { ON_TMPFS, ON_DISK_DIRECT };

	(void)state;
	for (uint32_t m = 0; m < COUNT(media); m++) {
		struct setup setup = { .threads = 1, .poll_ns = 20000, .io_uring = true };
		struct driver *driver = driver_with_disk(media[m], setup);
		struct reader readers[2];
		struct guest guest;

		become_movable(driver, media[m]);
		moving = true;
		begin(&guest, driver);
		for (uint32_t i = 0; i < COUNT(readers); i++) {
			readers[i] = (struct reader){ .volume = driver->volume };
			assert_int_equal(pthread_create(&readers[i].thread, NULL, reader_main, &readers[i]), 0);
		}
		for (uint64_t turn = 0; turn < TURNS; turn++)
			move(driver->volume, turn * 5 % BLOCKS);
		moving = false;
		for (uint32_t i = 0; i < COUNT(readers); i++) {
			assert_int_equal(pthread_join(readers[i].thread, NULL), 0);
			assert_int_equal(readers[i].result, 0);
		}
		assert_int_equal(pthread_join(guest.thread, NULL), 0);
		assert_false(guest.failed);
		driver_free(driver);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_no_reader_sees_what_came_to_the_place_that_its_block_left),
	};

	return cmocka_run_group_tests_name("moved places", tests, NULL, NULL);
}
