/*
 * test_mapping.c - copies from a file's mapping: also of what was appended since, never past the file's end, and with
 * bounded knowledge of huge files. pread() here counts, so that a copy shows as the lack of a call.
 */
#define _GNU_SOURCE
#include "../../vstore/dataplane/volume.h"
#include "commands.h"

#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { RESPONSE = sizeof(struct virtio_scsi_cmd_resp), CLUSTER = 65536, CHUNK_SHIFT = 27, CHUNKS = 4200, MOST = 4096 };

static const struct setup inline_io = { 0 }, with_uring = { .io_uring = true };
static unsigned calls;

ssize_t pread(int fd, void *buffer, size_t length, off_t offset)
{
	calls++;
	return syscall(SYS_pread64, fd, buffer, length, offset);
}

ssize_t preadv2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
	calls++;
	return syscall(SYS_preadv2, fd, iov, count, offset, 0, flags);
}

ssize_t pwrite(int fd, const void *buffer, size_t length, off_t offset)
{
	calls++;
	return syscall(SYS_pwrite64, fd, buffer, length, offset);
}

static long faults; /* that waited for a disk */

int getrusage(__rusage_who_t who, struct rusage *usage)
{
	(void)who;
	*usage = (struct rusage){ .ru_majflt = faults };
	return 0;
}

static unsigned calls_to_read(struct driver *driver, uint32_t lba, uint8_t expected)
{
	struct buffer in = data_in(driver, BLOCK);

	calls = 0;
	assert_good(command(driver, read_10(lba, 1), NULL, 0, &in, 1), RESPONSE + BLOCK);
	assert_int_equal(*(uint8_t *)driver_host(driver, in.guest), expected);
	return calls;
}

/* The driver's LUN gets a disk twice as long as the file that it had, in a file that is `length` bytes long now. */
static void become_short(struct driver *driver, uint64_t length)
{
	vs_lun_settings settings = open_lun();
	vs_volume *volume = vs_volume_new(2ull * DISK_LENGTH, 16);

	assert_non_null(volume);
	assert_int_equal(ftruncate(driver->disk, (off_t)length), 0);
	assert_int_equal(vs_volume_set_layer(volume, 0, driver->disk, VS_FILE_INSTANT, 1), 0);
	assert_int_equal(vs_volume_set_run(volume, 0, 2 * DISK_LENGTH / CLUSTER, entry_of(VS_DATA, 0, 0)), 0);
	settings.blocks *= 2;
	assert_int_equal(vs_lun_set(driver->device, 0, 0, volume, &settings), 0);
	vs_volume_release(driver->volume);
	driver->volume = volume;
}

static void append(struct driver *driver, uint64_t end)
{
	assert_int_equal(pwrite(driver->disk, "A", 1, (off_t)end - BLOCK), 1);
	assert_int_equal(ftruncate(driver->disk, (off_t)end), 0);
	assert_int_equal(vs_volume_give(driver->volume, 0, end - CLUSTER, 1, 0), 0);
}

static void test_what_was_appended_is_copied_from_memory_too(void **state)
{
	struct driver *driver = driver_with_disk(ON_TMPFS, inline_io);

	(void)state;
	become_short(driver, DISK_LENGTH);
	append(driver, 2 * DISK_LENGTH);
	assert_int_equal(calls_to_read(driver, 2 * DISK_BLOCKS - 1, 'A'), 1);
	assert_int_equal(calls_to_read(driver, 2 * DISK_BLOCKS - 1, 'A'), 0);
	driver_free(driver);
}

static void test_a_file_that_outgrows_its_mapping_gets_another_one(void **state)
{
	struct driver *driver = driver_with_disk(ON_TMPFS, inline_io);
	const uint64_t far = 1ull << 30;

	(void)state;
	become_short(driver, DISK_LENGTH);
	const struct mapping *old = driver->volume->layers[0]->mapping;
	assert_true(old->length < far);
	append(driver, far);
	assert_true(driver->volume->layers[0]->mapping->length >= far);
	assert_int_equal(vs_volume_set_run(driver->volume, 0, 1, entry_of(VS_DATA, 0, far - CLUSTER)), 0);
	assert_int_equal(calls_to_read(driver, CLUSTER / BLOCK - 1, 'A'), 1);
	assert_int_equal(calls_to_read(driver, CLUSTER / BLOCK - 1, 'A'), 0);
	assert_int_equal(vs_volume_drain(driver->volume), 0);
	assert_int_equal(driver->volume->retired_count, 0);
	driver_free(driver);
}

static void test_a_write_behind_the_end_of_the_file_makes_it_longer(void **state)
{
	struct driver *driver = driver_with_disk(ON_TMPFS, inline_io);
	struct buffer out = data_out(driver, BLOCK, 5);
	struct stat status;
	uint8_t byte;

	(void)state;
	become_short(driver, DISK_LENGTH + BLOCK);
	for (uint32_t i = 0; i < 2; i++)
		calls_to_read(driver, DISK_BLOCKS, 0); /* its page is known to be in memory */
	assert_good(command(driver, write_10(DISK_BLOCKS + 1, 1), &out, 1, NULL, 0), RESPONSE);
	assert_int_equal(fstat(driver->disk, &status), 0);
	assert_int_equal(status.st_size, DISK_LENGTH + 2 * BLOCK);
	assert_int_equal(pread(driver->disk, &byte, 1, DISK_LENGTH + BLOCK), 1);
	assert_int_equal(byte, 5);
	driver_free(driver);
}

static void test_only_files_of_a_lun_are_mapped(void **state)
{
	int fd;
	vs_volume *volume = new_volume(ON_TMPFS, DISK_LENGTH, &fd);

	(void)state;
	assert_null(volume->layers[0]->mapping);
	vs_volume_release(volume);
	close(fd);
}

static void test_a_huge_file_read_all_over_costs_no_more_than_a_part_of_it(void **state)
{
	struct driver *driver = driver_with_disk(ON_DISK, inline_io);
	const uint64_t length = (uint64_t)CHUNKS << CHUNK_SHIFT;

	(void)state;
	assert_int_equal(ftruncate(driver->disk, (off_t)length), 0);
	assert_int_equal(vs_volume_resize(driver->volume, length), 0);
	const struct layer *layer = driver->volume->layers[0];
	for (uint64_t chunk = 0; chunk < CHUNKS; chunk++) {
		layer_note_resident(layer, chunk << CHUNK_SHIFT, PAGE);
		assert_in_range(layer->mapping->chunks, 0, MOST);
	}
	assert_null(layer_resident(layer, 0, PAGE, false));
	assert_non_null(layer_resident(layer, (CHUNKS - 1ull) << CHUNK_SHIFT, PAGE, false));
	driver_free(driver);
}

static void test_one_read_from_the_page_cache_finds_what_lies_about_it(void **state)
{
	static const uint8_t bytes[2 * CLUSTER] = { 'A', [CLUSTER] = 'B' };
	struct driver *driver = driver_with_disk(ON_DISK, with_uring);

	(void)state;
	assert_int_equal(pwrite(driver->disk, bytes, sizeof(bytes), 0), sizeof(bytes));
	assert_int_equal(calls_to_read(driver, 0, 'A'), 1);
	assert_int_equal(calls_to_read(driver, CLUSTER / BLOCK, 'B'), 0);
	driver_free(driver);
}

/* How many calls a write of one block takes, and how much longer the file is on its host for it. */
static unsigned calls_to_write(struct driver *driver, uint32_t lba, uint64_t *allocated)
{
	struct buffer out = data_out(driver, BLOCK, 5);
	struct stat before, after;

	assert_int_equal(fstat(driver->disk, &before), 0);
	calls = 0;
	assert_good(command(driver, write_10(lba, 1), &out, 1, NULL, 0), RESPONSE);
	assert_int_equal(fstat(driver->disk, &after), 0);
	*allocated = (uint64_t)(after.st_blocks - before.st_blocks) * 512;
	return calls;
}

static void test_one_write_to_tmpfs_finds_what_lies_about_it_and_fills_no_hole(void **state)
{
	struct driver *driver = driver_with_disk(ON_TMPFS, inline_io);
	const uint32_t hole = CLUSTER / BLOCK;
	uint64_t allocated;

	(void)state;
	assert_int_equal(
		fallocate(driver->disk, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, CLUSTER, DISK_LENGTH - CLUSTER), 0);
	assert_int_equal(calls_to_write(driver, 0, &allocated), 1);
	assert_int_equal(allocated, 0);
	assert_int_equal(calls_to_write(driver, hole / 2, &allocated), 0);
	assert_int_equal(allocated, 0);
	assert_int_equal(calls_to_write(driver, hole, &allocated), 1);
	assert_int_equal(allocated, PAGE);
	driver_free(driver);
}

/* Whether a page of this process has an entry in the page table: bit 63 of its word in the kernel's pagemap. */
static bool is_present(const uint8_t *page)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t word;

	assert_int_equal(syscall(SYS_pread64, pagemap, &word, sizeof(word), (uintptr_t)page / PAGE * sizeof(word)),
			 sizeof(word));
	close(pagemap);
	return word >> 63;
}

static void test_a_tmpfs_file_without_holes_is_mapped_a_window_at_a_time(void **state)
{
	struct driver *driver = driver_with_disk(ON_TMPFS, inline_io);
	uint64_t allocated, window = DISK_LENGTH < 512 * PAGE ? DISK_LENGTH : 512 * PAGE;

	(void)state;
	calls_to_write(driver, 0, &allocated);
	for (uint64_t offset = 0; offset < window; offset += PAGE)
		assert_true(is_present(driver->volume->layers[0]->mapping->bytes + offset));
	driver_free(driver);
}

static void test_pages_that_the_kernel_took_back_make_a_loop_wait_for_few_copies_only(void **state)
{
	static const uint8_t bytes[CLUSTER] = { 'A' };
	struct driver *driver = driver_with_disk(ON_DISK, with_uring);
	const long most = 64;

	(void)state;
	faults = 0;
	assert_int_equal(pwrite(driver->disk, bytes, sizeof(bytes), 0), sizeof(bytes));
	assert_int_equal(calls_to_read(driver, 0, 'A'), 1);
	while (!calls_to_read(driver, 0, 'A'))
		assert_in_range(++faults, 1, most);
	driver_free(driver);
}

static void test_a_loop_writes_no_part_of_a_page_that_the_kernel_has_to_read_first(void **state)
{
	struct driver *driver = driver_with_disk(ON_DISK, with_uring);
	struct buffer part = data_out(driver, BLOCK, 3), page = data_out(driver, PAGE, 4);
	struct layer *layer = driver->volume->layers[0];

	(void)state;
	layer->local = true;
	atomic_store(&layer->no_nowait, true);
	layer_forget_resident(layer, 0, INT64_MAX);
	for (uint32_t again = 0; again < 2; again++) {
		calls = 0;
		assert_good(command(driver, write_10(1, 1), &part, 1, NULL, 0), RESPONSE);
		assert_int_equal(calls, again);
	}
	calls = 0;
	assert_good(command(driver, write_10(PAGE / BLOCK, PAGE / BLOCK), &page, 1, NULL, 0), RESPONSE);
	assert_int_equal(calls, 1);
	driver_free(driver);
}

static void test_after_a_write_that_waited_a_disk_is_not_quick_for_a_while(void **state)
{
	struct layer layer = { .local = true };
	const uint64_t ms = 1000000;

	(void)state;
	assert_true(layer_is_quick(&layer, 100 * ms));
	layer_was_slow(&layer, 100 * ms, 5 * ms);
	assert_false(layer_is_quick(&layer, 150 * ms));
	assert_true(layer_is_quick(&layer, 200 * ms));
	layer.local = false;
	assert_false(layer_is_quick(&layer, 200 * ms));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_what_was_appended_is_copied_from_memory_too),
		cmocka_unit_test(test_a_file_that_outgrows_its_mapping_gets_another_one),
		cmocka_unit_test(test_a_write_behind_the_end_of_the_file_makes_it_longer),
		cmocka_unit_test(test_only_files_of_a_lun_are_mapped),
		cmocka_unit_test(test_a_huge_file_read_all_over_costs_no_more_than_a_part_of_it),
		cmocka_unit_test(test_one_read_from_the_page_cache_finds_what_lies_about_it),
		cmocka_unit_test(test_one_write_to_tmpfs_finds_what_lies_about_it_and_fills_no_hole),
		cmocka_unit_test(test_a_tmpfs_file_without_holes_is_mapped_a_window_at_a_time),
		cmocka_unit_test(test_pages_that_the_kernel_took_back_make_a_loop_wait_for_few_copies_only),
		cmocka_unit_test(test_a_loop_writes_no_part_of_a_page_that_the_kernel_has_to_read_first),
		cmocka_unit_test(test_after_a_write_that_waited_a_disk_is_not_quick_for_a_while),
	};

	return cmocka_run_group_tests_name("mapping", tests, NULL, NULL);
}
