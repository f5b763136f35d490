/*
 * test_fault.c - guest memory and files that are cut short under the device: an error of that ring or that command, never
 * the end of the process. One test alone in this program: cmocka sets its own SIGBUS handler for each test, and the device
 * sets its own only once.
 */
#define _GNU_SOURCE
#include "commands.h"

#include <unistd.h>

enum { HEADER = sizeof(struct virtio_scsi_cmd_req), RESPONSE = sizeof(struct virtio_scsi_cmd_resp) };

static void finish(struct driver *driver, struct answer answer)
{
	vs_completion completion = { .request = answer.notice.request, .response_length = RESPONSE };
	struct vring_used_elem used;

	assert_int_equal(vs_complete(driver->device, &completion, 1), 0);
	driver_run(driver);
	assert_true(driver_used(driver, REQUEST, &used));
}

/* A buffer whose page is gone, as data-in, data-out or header. */
static void cut_guest_memory(enum medium medium, unsigned which)
{
	struct driver *driver = driver_with_disk(medium, (struct setup){ .rings = 4, .regions = 2 });
	uint64_t gone = driver->regions[1].guest + 2 * PAGE;
	struct buffer buffers[] = { { new_header(driver, which == 1 ? write_10(0, 8) : read_10(0, 8), 1), HEADER,
				      false },
				    { new_response(driver), RESPONSE, true },
				    { gone, PAGE, true } };
	struct vring_used_elem used;

	if (which == 1) {
		buffers[2] = buffers[1];
		buffers[1] = (struct buffer){ gone, PAGE, false };
	}
	if (which == 2) {
		buffers[0].guest = gone;
		buffers[2] = data_in(driver, PAGE);
	}
	assert_int_equal(ftruncate(driver->regions[1].fd, PAGE), 0);
	driver_offer(driver, REQUEST, driver_chain(driver, REQUEST, buffers, 3));
	driver_run(driver);
	assert_false(driver_used(driver, REQUEST, &used));
	assert_true(driver_broken(driver, REQUEST));
	assert_true(driver_signalled(driver->rings[REQUEST].error));
	assert_int_equal(vs_vring_in_flight(driver->device, REQUEST), 0);
	for (vs_notice notice; driver_notice(driver, &notice);)
		assert_int_equal(notice.kind, VS_NOTICE_BROKEN);
	struct buffer in = data_in(driver, BLOCK);
	assert_good(command_on(driver, REQUEST + 1, read_10(0, 1), NULL, 0, &in, 1), RESPONSE + BLOCK);
	driver_free(driver);
}

/* The slow path copies from and to the guest too. */
static void cut_under_python(void)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ .regions = 2 });
	struct buffer gone = { driver->regions[1].guest + 2 * PAGE, BLOCK, false };
	uint8_t bytes[BLOCK];
	struct answer answer = command(driver, test_unit_ready(), &gone, 1, NULL, 0);

	assert_slow(answer);
	assert_int_equal(ftruncate(driver->regions[1].fd, PAGE), 0);
	assert_true(vs_request_read(answer.notice.request, 0, bytes, BLOCK) < 0);
	finish(driver, answer);
	driver_free(driver);
}

/* The first read leaves pages known to be resident; then the file ends before them. */
static void cut_file(enum medium medium)
{
	struct driver *driver = driver_with_disk(medium, (struct setup){ 0 });
	struct buffer in = data_in(driver, PAGE);

	assert_good(command(driver, read_10(64, 8), NULL, 0, &in, 1), RESPONSE + PAGE);
	assert_good(command(driver, read_10(64, 8), NULL, 0, &in, 1), RESPONSE + PAGE);
	assert_int_equal(ftruncate(driver->disk, PAGE), 0);
	struct answer answer = command(driver, read_10(64, 8), NULL, 0, &in, 1);
	if (answer.used) {
		for (uint32_t i = 0; i < PAGE; i++)
			assert_int_equal(((uint8_t *)driver_host(driver, in.guest))[i], 0);
	} else {
		assert_slow(answer);
		finish(driver, answer);
	}
	assert_false(driver_broken(driver, REQUEST));
	driver_free(driver);
}

static void test_memory_and_files_cut_short_are_errors_and_no_crash(void **state)
{
	static const enum medium media[] = { ON_MEMORY, ON_TMPFS, ON_DISK };

	(void)state;
	for (uint32_t m = 0; m < COUNT(media); m++)
		for (unsigned which = 0; which < 3; which++)
			cut_guest_memory(media[m], which);
	cut_under_python();
	cut_file(ON_TMPFS);
	cut_file(ON_DISK);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_memory_and_files_cut_short_are_errors_and_no_crash),
	};

	return cmocka_run_group_tests_name("fault", tests, NULL, NULL);
}
