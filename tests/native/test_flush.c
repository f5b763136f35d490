/*
 * test_flush.c - what a flush that failed means for all that come after it. fdatasync() here fails when it is told to, and
 * as the kernel does it tells of lost writes once.
 */
#define _GNU_SOURCE
#include "commands.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { RESPONSE = sizeof(struct virtio_scsi_cmd_resp) };

static const struct setup inline_io = { 0 };
static unsigned failures;

int fdatasync(int fd)
{
	if (!failures)
		return (int)syscall(SYS_fdatasync, fd);
	failures--;
	errno = EIO;
	return -1;
}

static void finish(struct driver *driver, struct answer answer)
{
	vs_completion completion = { .request = answer.notice.request, .response_length = RESPONSE };
	struct vring_used_elem used;

	assert_slow(answer);
	assert_int_equal(vs_complete(driver->device, &completion, 1), 0);
	assert_true(driver_used(driver, REQUEST, &used));
}

static void test_a_flush_that_failed_is_never_repeated_into_success(void **state)
{
	struct driver *driver = driver_with_disk(ON_DISK, inline_io);

	(void)state;
	failures = 1;
	finish(driver, command(driver, synchronize_cache_10(), NULL, 0, NULL, 0));
	assert_int_equal(vs_volume_flush(driver->volume), -EIO);
	finish(driver, command(driver, synchronize_cache_10(), NULL, 0, NULL, 0));
	driver_free(driver);
}

static void test_after_a_failed_flush_no_write_counts_as_durable(void **state)
{
	struct driver *driver = driver_with_disk(ON_DISK, inline_io);
	struct buffer out = data_out(driver, BLOCK, 1);
	struct cdb fua = write_10(0, 1);

	(void)state;
	fua.bytes[1] = 0x08;
	assert_good(command(driver, fua, &out, 1, NULL, 0), RESPONSE);
	failures = 1;
	assert_int_equal(vs_volume_flush(driver->volume), -EIO);
	finish(driver, command(driver, fua, &out, 1, NULL, 0));
	assert_good(command(driver, write_10(0, 1), &out, 1, NULL, 0), RESPONSE);
	driver_free(driver);
}

static void test_a_failed_flush_of_a_direct_file_may_be_repeated(void **state)
{
	struct driver *driver = driver_with_disk(ON_DISK_DIRECT, inline_io);

	(void)state;
	failures = 1;
	assert_int_equal(vs_volume_flush(driver->volume), -EIO);
	assert_int_equal(vs_volume_flush(driver->volume), 0);
	driver_free(driver);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_flush_that_failed_is_never_repeated_into_success),
		cmocka_unit_test(test_after_a_failed_flush_no_write_counts_as_durable),
		cmocka_unit_test(test_a_failed_flush_of_a_direct_file_may_be_repeated),
	};

	return cmocka_run_group_tests_name("flush", tests, NULL, NULL);
}
