/*
 * test_epoch.c - what drain and quiesce wait for: I/O that is under way, and none that begins later.
 *
 * preadv() and pwritev2() here stop at a gate when they are told to, so that I/O is under way for as long as a test wants.
 */
#define _GNU_SOURCE
#include "../../vstore/dataplane/volume.h"
#include "commands.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { RESPONSE = sizeof(struct virtio_scsi_cmd_resp), A_WHILE_US = 20000 };

static const struct setup inline_io = { 0 };
static const vs_allocation copies = { .sub_shift = 12, .own_layers = 1, .batch_limit = 64 };
static _Atomic unsigned stopping, stopped, passing; /* calls that shall stop, have, and may go on */

static void gate(void)
{
	unsigned some = stopping;

	if (!some)
		return;
	stopping = some - 1;
	unsigned place = stopped++;
	while (passing <= place)
		usleep(100);
}

ssize_t preadv(int fd, const struct iovec *iov, int count, off_t offset)
{
	gate();
	return syscall(SYS_preadv, fd, iov, count, offset, 0);
}

ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
	gate();
	return syscall(SYS_pwritev2, fd, iov, count, offset, 0, flags);
}

ssize_t pread(int fd, void *buffer, size_t length, off_t offset)
{
	gate();
	return syscall(SYS_pread64, fd, buffer, length, offset);
}

ssize_t pwrite(int fd, const void *buffer, size_t length, off_t offset)
{
	gate();
	return syscall(SYS_pwrite64, fd, buffer, length, offset);
}

static void close_gate(unsigned calls)
{
	stopped = passing = 0;
	stopping = calls;
}

struct caller {
	vs_volume *volume;
	int (*call)(struct caller *caller);
	uint64_t offset;
	uint8_t bytes[PAGE];
	int result;
	_Atomic bool done;
	pthread_t thread;
};

static void *call_main(void *argument)
{
	struct caller *caller = argument;

	caller->result = caller->call(caller);
	caller->done = true;
	return NULL;
}

static void start_at(struct caller *caller, vs_volume *volume, int (*call)(struct caller *caller), uint64_t offset)
{
	*caller = (struct caller){ .volume = volume, .call = call, .offset = offset };
	assert_int_equal(pthread_create(&caller->thread, NULL, call_main, caller), 0);
}

static void start(struct caller *caller, vs_volume *volume, int (*call)(struct caller *caller))
{
	start_at(caller, volume, call, 0);
}

static void finish(struct caller *caller)
{
	assert_int_equal(pthread_join(caller->thread, NULL), 0);
	assert_int_equal(caller->result, 0);
}

static int reads(struct caller *caller)
{
	return vs_volume_read(caller->volume, caller->offset, caller->bytes, PAGE);
}

static int writes(struct caller *caller)
{
	memset(caller->bytes, 0x5A, PAGE);
	return vs_volume_write(caller->volume, caller->offset, caller->bytes, PAGE);
}

static int drains(struct caller *caller)
{
	return vs_volume_drain(caller->volume);
}

static int quiesces(struct caller *caller)
{
	return vs_volume_quiesce(caller->volume);
}

static void wait_until_stopped(unsigned calls)
{
	while (stopped < calls)
		usleep(100);
}

static void test_drain_waits_for_io_that_is_under_way_and_for_none_that_begins_later(void **state)
{
	struct caller before, after, drain;
	int fd;
	vs_volume *volume = new_volume(ON_TMPFS, DISK_LENGTH, &fd);

	(void)state;
	close_gate(2);
	start(&before, volume, reads);
	wait_until_stopped(1);
	start(&drain, volume, drains);
	usleep(A_WHILE_US);
	assert_false(drain.done);
	start(&after, volume, reads);
	wait_until_stopped(2);
	passing = 1;
	finish(&before);
	finish(&drain);
	assert_false(after.done);
	passing = 2;
	finish(&after);
	vs_volume_release(volume);
	close(fd);
}

static void test_drain_waits_for_what_a_loop_does_in_its_turn(void **state)
{
	struct driver *driver = driver_with_disk(ON_TMPFS, (struct setup){ .threads = 1 });
	struct buffer chain[3] = { { new_header(driver, read_10(0, 8), 1), 51, false },
				   { new_response(driver), RESPONSE, true },
				   data_in(driver, PAGE) };
	struct vring_used_elem used;
	struct caller drain;

	(void)state;
	close_gate(1);
	driver_offer(driver, REQUEST, driver_chain(driver, REQUEST, chain, 3));
	driver_kick(driver, REQUEST);
	wait_until_stopped(1);
	start(&drain, driver->volume, drains);
	usleep(A_WHILE_US);
	assert_false(drain.done);
	passing = 1;
	finish(&drain);
	assert_true(driver_wait(driver, REQUEST) && driver_used(driver, REQUEST, &used));
	driver_free(driver);
}

static void test_quiesce_waits_for_writes_under_way_and_holds_up_later_ones_until_resume(void **state)
{
	struct caller under_way, later, read, quiesce;
	int fd;
	vs_volume *volume = new_volume(ON_TMPFS, DISK_LENGTH, &fd);

	(void)state;
	close_gate(1);
	start(&under_way, volume, writes);
	wait_until_stopped(1);
	start(&quiesce, volume, quiesces);
	usleep(A_WHILE_US);
	assert_false(quiesce.done);
	start(&later, volume, writes);
	passing = 1;
	finish(&under_way);
	finish(&quiesce);
	start(&read, volume, reads);
	finish(&read);
	usleep(A_WHILE_US);
	assert_false(later.done);
	assert_int_equal(vs_volume_resume(volume), 0);
	finish(&later);
	assert_int_equal(vs_volume_resume(volume), -EINVAL);
	vs_volume_release(volume);
	close(fd);
}

static void test_loops_leave_writes_to_threads_that_may_wait_while_the_volume_is_quiesced(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);
	struct buffer out = data_out(driver, PAGE, 1), in = data_in(driver, PAGE);
	struct answer answer;

	(void)state;
	assert_int_equal(vs_volume_quiesce(driver->volume), 0);
	assert_good(command(driver, read_10(0, 8), NULL, 0, &in, 1), RESPONSE + PAGE);
	for (unsigned i = 0; i < 2; i++) {
		answer = i ? command(driver, write_same_16(0, 8, true, true), NULL, 0, NULL, 0)
			   : command(driver, write_10(0, 8), &out, 1, NULL, 0);
		vs_completion completion = { .request = answer.notice.request, .response_length = RESPONSE };
		struct vring_used_elem used;

		assert_slow(answer);
		assert_int_equal(vs_complete(driver->device, &completion, 1), 0);
		assert_true(driver_used(driver, REQUEST, &used));
	}
	assert_int_equal(vs_volume_resume(driver->volume), 0);
	assert_good(command(driver, write_10(0, 8), &out, 1, NULL, 0), RESPONSE);
	driver_free(driver);
}

static int holds_and_releases(struct caller *caller)
{
	int error = vs_volume_hold(caller->volume, caller->offset, PAGE, 0);

	return error ? error : vs_volume_release_hold(caller->volume, caller->offset, PAGE);
}

static void test_a_held_range_waits_for_writes_under_way_and_holds_up_later_ones_of_others(void **state)
{
	struct caller under_way, beside, into, other;
	uint8_t bytes[PAGE] = { 7 };
	int fd;
	vs_volume *volume = new_volume(ON_TMPFS, DISK_LENGTH, &fd);

	(void)state;
	close_gate(1);
	start(&under_way, volume, writes);
	wait_until_stopped(1);
	start(&other, volume, holds_and_releases);
	usleep(A_WHILE_US);
	assert_false(other.done);
	passing = 1;
	finish(&under_way);
	finish(&other);
	assert_int_equal(vs_volume_hold(volume, 0, PAGE + 1, 0), 0);
	start_at(&into, volume, writes, PAGE);
	start_at(&other, volume, holds_and_releases, PAGE);
	start_at(&beside, volume, writes, 2 * PAGE);
	finish(&beside);
	assert_int_equal(vs_volume_write(volume, 0, bytes, PAGE), 0);
	usleep(A_WHILE_US);
	assert_false(into.done);
	assert_false(other.done);
	assert_int_equal(vs_volume_release_hold(volume, 0, PAGE + 1), 0);
	finish(&into);
	finish(&other);
	assert_int_equal(vs_volume_release_hold(volume, 0, PAGE + 1), -EINVAL);
	assert_int_equal(vs_volume_hold(volume, DISK_LENGTH - 1, 2, 0), -EINVAL);
	assert_int_equal(vs_volume_hold(volume, UINT64_MAX, 2, 0), -EINVAL);
	vs_volume_release(volume);
	close(fd);
}

static void test_a_range_held_exclusively_holds_up_reads_of_others_too(void **state)
{
	struct caller into, beside;
	uint8_t bytes[PAGE];
	int fd;
	vs_volume *volume = new_volume(ON_TMPFS, DISK_LENGTH, &fd);

	(void)state;
	assert_int_equal(vs_volume_hold(volume, PAGE, PAGE, 1), 0);
	assert_int_equal(vs_volume_read(volume, 0, bytes, PAGE), 0);
	assert_int_equal(vs_volume_read(volume, PAGE, bytes, PAGE), 0);
	start_at(&into, volume, reads, PAGE);
	start_at(&beside, volume, reads, 2 * PAGE);
	finish(&beside);
	usleep(A_WHILE_US);
	assert_false(into.done);
	assert_int_equal(vs_volume_release_hold(volume, PAGE, PAGE), 0);
	finish(&into);
	assert_int_equal(vs_volume_hold(volume, PAGE, PAGE, 0), 0);
	start_at(&into, volume, reads, PAGE);
	finish(&into);
	assert_int_equal(vs_volume_release_hold(volume, PAGE, PAGE), 0);
	vs_volume_release(volume);
	close(fd);
}

static void test_loops_leave_reads_of_a_range_held_exclusively_to_threads_that_may_wait(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);
	struct buffer in = data_in(driver, PAGE);

	(void)state;
	assert_int_equal(vs_volume_hold(driver->volume, PAGE, PAGE, 1), 0);
	assert_good(command(driver, read_10(0, 8), NULL, 0, &in, 1), RESPONSE + PAGE);
	struct answer answer = command(driver, read_10(8, 8), NULL, 0, &in, 1);
	vs_completion completion = { .request = answer.notice.request, .response_length = RESPONSE };
	struct vring_used_elem used;

	assert_slow(answer);
	assert_int_equal(vs_complete(driver->device, &completion, 1), 0);
	assert_true(driver_used(driver, REQUEST, &used));
	assert_int_equal(vs_volume_release_hold(driver->volume, PAGE, PAGE), 0);
	assert_good(command(driver, read_10(8, 8), NULL, 0, &in, 1), RESPONSE + PAGE);
	driver_free(driver);
}

static void test_loops_leave_writes_to_a_held_range_to_threads_that_may_wait_and_no_others(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, inline_io);
	struct buffer out = data_out(driver, PAGE, 1), in = data_in(driver, PAGE);

	(void)state;
	assert_int_equal(vs_volume_hold(driver->volume, PAGE, PAGE, 0), 0);
	assert_good(command(driver, read_10(8, 8), NULL, 0, &in, 1), RESPONSE + PAGE);
	assert_good(command(driver, write_10(0, 8), &out, 1, NULL, 0), RESPONSE);
	assert_good(command(driver, write_10(16, 8), &out, 1, NULL, 0), RESPONSE);
	for (unsigned i = 0; i < 2; i++) {
		struct answer answer = i ? command(driver, write_same_16(15, 2, true, true), NULL, 0, NULL, 0)
					 : command(driver, write_10(15, 8), &out, 1, NULL, 0);
		vs_completion completion = { .request = answer.notice.request, .response_length = RESPONSE };
		struct vring_used_elem used;

		assert_slow(answer);
		assert_int_equal(vs_complete(driver->device, &completion, 1), 0);
		assert_true(driver_used(driver, REQUEST, &used));
	}
	assert_int_equal(vs_volume_release_hold(driver->volume, PAGE, PAGE), 0);
	assert_good(command(driver, write_10(15, 8), &out, 1, NULL, 0), RESPONSE);
	driver_free(driver);
}

static void test_a_compressed_block_is_not_replaced_while_the_volume_is_quiesced(void **state)
{
	uint8_t block[PAGE] = { 0 };
	int fd;
	vs_volume *volume = new_volume(ON_TMPFS, DISK_LENGTH, &fd);

	(void)state;
	assert_int_equal(vs_volume_allocates(volume, &copies), 0);
	assert_int_equal(vs_volume_give(volume, 0, 0, 1, 0), 0);
	assert_int_equal(vs_volume_set_run(volume, 3, 1, entry_of(VS_COMPRESSED, 0, 0)), 0);
	assert_int_equal(vs_volume_quiesce(volume), 0);
	assert_int_equal(vs_volume_replace(volume, 3, block, PAGE), -EAGAIN);
	assert_int_equal(vs_volume_resume(volume), 0);
	assert_int_equal(vs_volume_replace(volume, 3, block, PAGE), 0);
	vs_volume_release(volume);
	close(fd);
}

static void test_drain_frees_the_tables_that_were_replaced(void **state)
{
	vs_volume *volume = vs_volume_new(1ull << 30, 12);
	const uint64_t entry = entry_of(VS_HOLE, 0, 0);

	(void)state;
	assert_non_null(volume);
	assert_int_equal(vs_volume_set_run(volume, 0, 512, entry), 0);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(vs_volume_set_run(volume, 7, 1, entry_of(VS_ZERO, 0, 0)), 0);
		assert_int_equal(vs_volume_set_run(volume, 0, 512, entry), 0);
	}
	assert_int_equal(volume->retired_count, 3);
	assert_int_equal(vs_volume_drain(volume), 0);
	assert_int_equal(volume->retired_count, 0);
	vs_volume_release(volume);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_drain_waits_for_io_that_is_under_way_and_for_none_that_begins_later),
		cmocka_unit_test(test_drain_waits_for_what_a_loop_does_in_its_turn),
		cmocka_unit_test(test_quiesce_waits_for_writes_under_way_and_holds_up_later_ones_until_resume),
		cmocka_unit_test(test_loops_leave_writes_to_threads_that_may_wait_while_the_volume_is_quiesced),
		cmocka_unit_test(test_a_held_range_waits_for_writes_under_way_and_holds_up_later_ones_of_others),
		cmocka_unit_test(test_a_range_held_exclusively_holds_up_reads_of_others_too),
		cmocka_unit_test(test_loops_leave_reads_of_a_range_held_exclusively_to_threads_that_may_wait),
		cmocka_unit_test(test_loops_leave_writes_to_a_held_range_to_threads_that_may_wait_and_no_others),
		cmocka_unit_test(test_a_compressed_block_is_not_replaced_while_the_volume_is_quiesced),
		cmocka_unit_test(test_drain_frees_the_tables_that_were_replaced),
	};

	return cmocka_run_group_tests_name("epoch", tests, NULL, NULL);
}
