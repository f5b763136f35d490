/*
 * test_memory.c - guest memory regions added and removed, each refusal by name, and the dirty log: exactly the pages that
 * the device wrote, no more and no fewer.
 */
#define _GNU_SOURCE
#include "commands.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { HEADER = sizeof(struct virtio_scsi_cmd_req), RESPONSE = sizeof(struct virtio_scsi_cmd_resp) };

static int new_memfd(uint64_t length)
{
	int fd = memfd_create("memory", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)length), 0);
	return fd;
}

/* ---- regions ---- */

static void test_regions_that_overlap_are_refused(void **state)
{
	struct driver *driver = driver_new((struct setup){ 0 });
	int fd = new_memfd(REGION_SIZE);
	uint64_t user = driver->regions[0].user;

	(void)state;
	assert_int_equal(vs_memory_add(driver->device, 0, REGION_SIZE, user, fd, 0), -EEXIST);
	assert_int_equal(vs_memory_add(driver->device, REGION_SIZE - PAGE, REGION_SIZE, 1ull << 40, fd, 0), -EEXIST);
	assert_int_equal(vs_memory_add(driver->device, 1ull << 32, REGION_SIZE, user + PAGE, fd, 0), -EEXIST);
	assert_int_equal(vs_memory_add(driver->device, REGION_SIZE, REGION_SIZE, user + REGION_SIZE, fd, 0), 0);
	close(fd);
	driver_free(driver);
}

static void test_regions_that_wrap_are_refused(void **state)
{
	struct driver *driver = driver_new((struct setup){ 0 });
	int fd = new_memfd(REGION_SIZE);

	(void)state;
	assert_int_equal(vs_memory_add(driver->device, UINT64_MAX - PAGE + 1, REGION_SIZE, 1ull << 40, fd, 0),
			 -EOVERFLOW);
	assert_int_equal(vs_memory_add(driver->device, 1ull << 32, REGION_SIZE, UINT64_MAX - PAGE + 1, fd, 0),
			 -EOVERFLOW);
	assert_int_equal(vs_memory_add(driver->device, 1ull << 32, REGION_SIZE, 1ull << 40, fd, UINT64_MAX - PAGE + 1),
			 -EOVERFLOW);
	close(fd);
	driver_free(driver);
}

static void test_a_descriptor_shorter_than_its_region_is_refused(void **state)
{
	struct driver *driver = driver_new((struct setup){ 0 });
	int fd = new_memfd(REGION_SIZE);

	(void)state;
	assert_int_equal(vs_memory_add(driver->device, 1ull << 32, REGION_SIZE + PAGE, 1ull << 40, fd, 0), -EFBIG);
	assert_int_equal(vs_memory_add(driver->device, 1ull << 32, REGION_SIZE, 1ull << 40, fd, PAGE), -EFBIG);
	close(fd);
	driver_free(driver);
}

static void test_an_empty_region_and_a_bad_descriptor_are_refused(void **state)
{
	struct driver *driver = driver_new((struct setup){ 0 });
	int fd = new_memfd(REGION_SIZE);

	(void)state;
	assert_true(vs_memory_add(driver->device, 1ull << 32, 0, 1ull << 40, fd, 0) < 0);
	close(fd);
	assert_true(vs_memory_add(driver->device, 1ull << 32, REGION_SIZE, 1ull << 40, fd, 0) < 0);
	driver_free(driver);
}

static void test_as_many_regions_as_slots_fit_and_no_more(void **state)
{
	struct driver *driver = driver_new((struct setup){ .not_started = true });
	int fd = new_memfd(PAGE);

	(void)state;
	for (uint64_t i = 1; i < VS_MAX_REGIONS; i++)
		assert_int_equal(vs_memory_add(driver->device, i << 32, PAGE, i << 20, fd, 0), 0);
	assert_int_equal(vs_memory_add(driver->device, 1ull << 50, PAGE, 1ull << 50, fd, 0), -ENOSPC);
	assert_int_equal(vs_memory_remove(driver->device, 7ull << 32, PAGE, 7 << 20), 0);
	assert_int_equal(vs_memory_add(driver->device, 1ull << 50, PAGE, 1ull << 50, fd, 0), 0);
	close(fd);
	driver_free(driver);
}

static void test_only_a_region_that_is_there_can_be_removed(void **state)
{
	struct driver *driver = driver_new((struct setup){ .regions = 2, .not_started = true });
	const struct region *region = &driver->regions[1];

	(void)state;
	assert_int_equal(vs_memory_remove(driver->device, region->guest, region->size / 2, region->user), -ENOENT);
	assert_int_equal(vs_memory_remove(driver->device, region->guest + PAGE, region->size, region->user), -ENOENT);
	assert_int_equal(vs_memory_remove(driver->device, region->guest, region->size, region->user + PAGE), -ENOENT);
	assert_int_equal(vs_memory_remove(driver->device, region->guest, region->size, region->user), 0);
	assert_int_equal(vs_memory_remove(driver->device, region->guest, region->size, region->user), -ENOENT);
	driver_free(driver);
}

static void test_a_region_under_a_started_ring_cannot_be_removed(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });
	const struct region *region = &driver->regions[0];
	struct buffer in = data_in(driver, BLOCK);

	(void)state;
	assert_int_equal(vs_memory_remove(driver->device, region->guest, region->size, region->user), -EBUSY);
	assert_good(command(driver, read_10(0, 1), NULL, 0, &in, 1), RESPONSE + BLOCK);
	for (uint32_t i = 0; i < driver->setup.rings; i++)
		assert_int_equal(vs_vring_stop(driver->device, i), 0);
	assert_int_equal(vs_memory_remove(driver->device, region->guest, region->size, region->user), 0);
	driver_free(driver);
}

static void test_a_removed_region_is_no_longer_guest_memory(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ .regions = 2 });
	const struct region *region = &driver->regions[1];
	struct buffer in = { region->guest, BLOCK, true };

	(void)state;
	assert_good(command(driver, read_10(0, 1), NULL, 0, &in, 1), RESPONSE + BLOCK);
	for (uint32_t i = 0; i < driver->setup.rings; i++)
		assert_int_equal(vs_vring_stop(driver->device, i), 0);
	assert_int_equal(vs_memory_remove(driver->device, region->guest, region->size, region->user), 0);
	for (uint32_t i = 0; i < driver->setup.rings; i++)
		driver_start_ring(driver, i);
	assert_false(command(driver, read_10(0, 1), NULL, 0, &in, 1).used);
	assert_true(driver_broken(driver, REQUEST));
	driver_free(driver);
}

static void test_a_region_may_begin_anywhere_in_its_descriptor(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ .offset = 16 * PAGE });
	struct buffer in = data_in(driver, BLOCK);

	(void)state;
	assert_good(command(driver, read_10(5, 1), NULL, 0, &in, 1), RESPONSE + BLOCK);
	assert_int_equal(*(uint8_t *)driver_host(driver, in.guest), pattern(5 * BLOCK));
	driver_free(driver);
}

/* ---- the dirty log ---- */

enum { LOG_SIZE = 4 * REGION_SIZE / PAGE / 8 };

struct log {
	int fd;
	uint8_t *bits;
};

static struct log new_log(struct driver *driver)
{
	struct log log = { .fd = new_memfd(LOG_SIZE) };

	log.bits = mmap(NULL, LOG_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, log.fd, 0);
	assert_true(log.bits != MAP_FAILED);
	assert_int_equal(vs_device_set_log(driver->device, log.fd, LOG_SIZE, 0), 0);
	return log;
}

static void drop(struct log log)
{
	munmap(log.bits, LOG_SIZE);
	close(log.fd);
}

static void expect_page(uint8_t *bits, uint64_t guest, uint64_t length)
{
	for (uint64_t page = guest / PAGE; page <= (guest + length - 1) / PAGE; page++)
		bits[page / 8] |= (uint8_t)(1 << page % 8);
}

/* The used ring is logged at the guest address that SET_VRING_ADDR gave, when it asked for it. */
static void log_used_ring(struct driver *driver)
{
	struct ring *ring = &driver->rings[REQUEST];

	assert_int_equal(vs_vring_set_addresses(driver->device, REQUEST, 1, driver_user(driver, ring->desc_guest),
						driver_user(driver, ring->used_guest),
						driver_user(driver, ring->avail_guest), ring->used_guest),
			 0);
}

static const struct setup logging = { .features = FEATURE(LOG_ALL), .regions = 2 };

/* The response is wherever new_response() put it: the page before data_in()'s. */
static void test_a_read_logs_data_response_and_used_ring_exactly(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, logging);
	struct log log = new_log(driver);
	uint8_t expected[LOG_SIZE] = { 0 };

	(void)state;
	log_used_ring(driver);
	/* odd borders: the first and the last page are touched by one byte */
	uint64_t guest = driver_allocate(driver, 0, 4 * PAGE, PAGE) + PAGE - 1;
	struct buffer in[] = { { guest, 1 + PAGE + 1, true }, { REGION_SIZE + 5 * PAGE, 2 * BLOCK - 2, true } };
	driver_allocate(driver, 0, PAGE, PAGE);
	driver->regions[0].next = (driver->regions[0].next + PAGE - 1) / PAGE * PAGE;
	uint64_t response = driver->regions[0].guest + driver->regions[0].next;
	assert_good(command(driver, read_10(0, 10), NULL, 0, in, 2), RESPONSE + 10 * BLOCK);
	expect_page(expected, in[0].guest, in[0].length);
	expect_page(expected, in[1].guest, in[1].length);
	expect_page(expected, response, 1);
	expect_page(expected, driver->rings[REQUEST].used_guest, 6 + 8 * 64);
	assert_memory_equal(log.bits, expected, LOG_SIZE);
	drop(log);
	driver_free(driver);
}

static void test_a_write_logs_no_data_page(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, logging);
	struct log log = new_log(driver);
	uint8_t expected[LOG_SIZE] = { 0 };
	struct buffer out = data_out(driver, PAGE, 3);

	(void)state;
	driver->regions[0].next = (driver->regions[0].next + PAGE - 1) / PAGE * PAGE;
	uint64_t response = driver->regions[0].guest + driver->regions[0].next;
	assert_good(command(driver, write_10(0, 8), &out, 1, NULL, 0), RESPONSE);
	expect_page(expected, response, 1);
	assert_memory_equal(log.bits, expected, LOG_SIZE);
	drop(log);
	driver_free(driver);
}

static void test_nothing_is_logged_without_the_feature_or_without_a_log(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ .regions = 2 });
	struct log log = new_log(driver);
	const uint8_t clean[LOG_SIZE] = { 0 };
	struct buffer in = data_in(driver, PAGE);

	(void)state;
	assert_good(command(driver, read_10(0, 8), NULL, 0, &in, 1), RESPONSE + PAGE);
	assert_memory_equal(log.bits, clean, LOG_SIZE);
	assert_int_equal(vs_device_set_features(driver->device, FEATURE(LOG_ALL)), 0);
	assert_int_equal(vs_device_set_log(driver->device, -1, 0, 0), 0);
	assert_good(command(driver, read_10(0, 8), NULL, 0, &in, 1), RESPONSE + PAGE);
	assert_memory_equal(log.bits, clean, LOG_SIZE);
	drop(log);
	driver_free(driver);
}

static void test_what_python_answers_is_logged_too(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, logging);
	struct log log = new_log(driver);
	uint8_t expected[LOG_SIZE] = { 0 };
	struct buffer in = data_in(driver, 2 * PAGE);
	vs_completion completion = { .response_length = RESPONSE, .data_in_length = 36 };

	(void)state;
	driver->regions[0].next = (driver->regions[0].next + PAGE - 1) / PAGE * PAGE;
	uint64_t response = driver->regions[0].guest + driver->regions[0].next;
	struct answer answer = command(driver, (struct cdb){ { 0x12, 0, 0, 0, 36 } }, NULL, 0, &in, 1);
	assert_slow(answer);
	completion.request = answer.notice.request;
	assert_int_equal(vs_request_write(completion.request, 0, "inquiry data", 12), 0);
	assert_int_equal(vs_complete(driver->device, &completion, 1), 0);
	driver_run(driver);
	expect_page(expected, in.guest, 36);
	expect_page(expected, response, 1);
	assert_memory_equal(log.bits, expected, LOG_SIZE);
	drop(log);
	driver_free(driver);
}

static void test_a_log_that_does_not_cover_guest_memory_is_refused(void **state)
{
	struct driver *driver = driver_new((struct setup){ .regions = 2 });
	uint64_t needed = 2 * REGION_SIZE / PAGE / 8;
	int fd = new_memfd(2 * needed);

	(void)state;
	assert_int_equal(vs_device_set_log(driver->device, fd, needed - 1, 0), -EFBIG);
	assert_int_equal(vs_device_set_log(driver->device, fd, needed, 0), 0);
	assert_int_equal(vs_device_set_log(driver->device, fd, needed, needed + 1), -EFBIG);
	assert_true(vs_device_set_log(driver->device, fd, needed, UINT64_MAX - 3) < 0);
	close(fd);
	driver_free(driver);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_regions_that_overlap_are_refused),
		cmocka_unit_test(test_regions_that_wrap_are_refused),
		cmocka_unit_test(test_a_descriptor_shorter_than_its_region_is_refused),
		cmocka_unit_test(test_an_empty_region_and_a_bad_descriptor_are_refused),
		cmocka_unit_test(test_as_many_regions_as_slots_fit_and_no_more),
		cmocka_unit_test(test_only_a_region_that_is_there_can_be_removed),
		cmocka_unit_test(test_a_region_under_a_started_ring_cannot_be_removed),
		cmocka_unit_test(test_a_removed_region_is_no_longer_guest_memory),
		cmocka_unit_test(test_a_region_may_begin_anywhere_in_its_descriptor),
		cmocka_unit_test(test_a_read_logs_data_response_and_used_ring_exactly),
		cmocka_unit_test(test_a_write_logs_no_data_page),
		cmocka_unit_test(test_nothing_is_logged_without_the_feature_or_without_a_log),
		cmocka_unit_test(test_what_python_answers_is_logged_too),
		cmocka_unit_test(test_a_log_that_does_not_cover_guest_memory_is_refused),
	};

	return cmocka_run_group_tests_name("memory", tests, NULL, NULL);
}
