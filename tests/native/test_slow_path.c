/*
 * test_slow_path.c - requests that cross to Python and come back: what the notice says, data read and written on demand,
 * completions in any order, events.
 */
#include "commands.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

enum { HEADER = sizeof(struct virtio_scsi_cmd_req), RESPONSE = sizeof(struct virtio_scsi_cmd_resp) };

static bool readable(int fd)
{
	struct pollfd poller = { .fd = fd, .events = POLLIN };

	return poll(&poller, 1, 0) == 1;
}

static void complete(struct driver *driver, vs_request *request, const void *response, uint32_t length,
		     uint64_t data_in)
{
	vs_completion completion = { .request = request, .response_length = length, .data_in_length = data_in };

	memcpy(completion.response, response, length);
	assert_int_equal(vs_complete(driver->device, &completion, 1), 0);
	driver_run(driver);
}

static const struct cdb inquiry = { { 0x12, 0, 0, 0, 96 } };

static void test_a_notice_carries_header_and_lengths(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });
	struct buffer out = data_out(driver, 700, 9), in = data_in(driver, 300);
	struct virtio_scsi_cmd_req header;
	const uint8_t response[RESPONSE] = { 0 };

	(void)state;
	assert_false(readable(vs_device_notice_fd(driver->device)));
	struct answer answer = command(driver, inquiry, &out, 1, &in, 1);
	assert_slow(answer);
	assert_int_equal(answer.notice.vring, REQUEST);
	assert_int_equal(answer.notice.data_out, 700);
	assert_int_equal(answer.notice.data_in, 300);
	assert_int_equal(answer.notice.response_room, RESPONSE);
	assert_int_equal(answer.notice.header_length, HEADER);
	memcpy(&header, answer.notice.header, sizeof(header));
	assert_int_equal(header.tag, 1);
	assert_memory_equal(header.cdb, inquiry.bytes, sizeof(inquiry.bytes));
	complete(driver, answer.notice.request, response, RESPONSE, 0);
	driver_free(driver);
}

/* Of what Python answered: data-in as it says, data-out without the residual; nothing of a command that failed. */
static void test_bytes_that_python_moved_are_counted(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });
	struct buffer out = data_out(driver, 700, 9), in = data_in(driver, 300);
	struct virtio_scsi_cmd_resp good = { .resid = 200 }, failed = { .status = 2 };
	struct vring_used_elem used;

	(void)state;
	complete(driver, command(driver, inquiry, &out, 1, &in, 1).notice.request, &good, RESPONSE, 96);
	assert_true(driver_used(driver, REQUEST, &used));
	complete(driver, command(driver, inquiry, &out, 1, &in, 1).notice.request, &failed, RESPONSE, 10);
	vs_vring_counters counters = driver_counters(driver, REQUEST);
	assert_int_equal(counters.bytes_read, 96);
	assert_int_equal(counters.bytes_written, 500);
	driver_free(driver);
}

static void test_the_notice_descriptor_is_readable_until_all_is_taken(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });
	vs_notice notices[3];
	const uint8_t response[RESPONSE] = { 0 };

	(void)state;
	for (uint32_t i = 0; i < 3; i++) {
		struct buffer buffers[] = { { new_header(driver, inquiry, i), HEADER, false },
					    { new_response(driver), RESPONSE, true } };
		driver_offer(driver, REQUEST, driver_chain(driver, REQUEST, buffers, 2));
	}
	driver_run(driver);
	assert_true(readable(vs_device_notice_fd(driver->device)));
	assert_int_equal(vs_device_take(driver->device, notices, 2), 2);
	assert_true(readable(vs_device_notice_fd(driver->device)));
	assert_int_equal(vs_device_take(driver->device, notices + 2, 1), 1);
	assert_int_equal(vs_device_take(driver->device, notices, 1), 0);
	assert_false(readable(vs_device_notice_fd(driver->device)));
	for (uint32_t i = 0; i < 3; i++)
		complete(driver, notices[i].request, response, RESPONSE, 0);
	driver_free(driver);
}

static void test_data_out_is_read_in_pieces(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });
	struct buffer whole = data_out(driver, 1000, 3);
	struct buffer out[] = { { whole.guest, 1, false },
				{ whole.guest + 1, 600, false },
				{ whole.guest + 601, 399, false } };
	uint8_t bytes[1000], *expected = driver_host(driver, whole.guest);
	const uint8_t response[RESPONSE] = { 0 };

	(void)state;
	struct answer answer = command(driver, inquiry, out, 3, NULL, 0);
	assert_slow(answer);
	assert_int_equal(vs_request_read(answer.notice.request, 0, bytes, 1000), 0);
	assert_memory_equal(bytes, expected, 1000);
	assert_int_equal(vs_request_read(answer.notice.request, 599, bytes, 5), 0);
	assert_memory_equal(bytes, expected + 599, 5);
	assert_int_equal(vs_request_read(answer.notice.request, 1000, bytes, 0), 0);
	assert_int_equal(vs_request_read(answer.notice.request, 999, bytes, 2), -EINVAL);
	assert_int_equal(vs_request_read(answer.notice.request, 1001, bytes, 0), -EINVAL);
	assert_int_equal(vs_request_read(answer.notice.request, UINT64_MAX, bytes, 2), -EINVAL);
	complete(driver, answer.notice.request, response, RESPONSE, 0);
	driver_free(driver);
}

static void test_data_in_and_response_reach_the_guest(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });
	struct buffer whole = data_in(driver, 200);
	struct buffer in[] = { { whole.guest, 7, true }, { whole.guest + 7, 193, true } };
	struct virtio_scsi_cmd_resp response = { .status = 2, .sense_len = 18, .resid = 100, .sense = { 0x70, 0, 5 } };
	struct vring_used_elem used;

	(void)state;
	struct answer answer = command(driver, inquiry, NULL, 0, in, 2);
	assert_slow(answer);
	assert_int_equal(vs_request_write(answer.notice.request, 0, "0123456789", 10), 0);
	assert_int_equal(vs_request_write(answer.notice.request, 90, "abcdefghij", 10), 0);
	assert_int_equal(vs_request_write(answer.notice.request, 199, "xy", 2), -EINVAL);
	complete(driver, answer.notice.request, &response, RESPONSE, 100);
	assert_true(driver_used(driver, REQUEST, &used));
	assert_int_equal(used.len, RESPONSE + 100);
	uint8_t *bytes = driver_host(driver, whole.guest);
	assert_memory_equal(bytes, "0123456789", 10);
	assert_memory_equal(bytes + 90, "abcdefghij", 10);
	assert_int_equal(bytes[199], 0xaa);
	assert_true(driver_signalled(driver->rings[REQUEST].call));
	driver_free(driver);
}

static void test_completions_come_in_any_order_with_one_interrupt_a_call(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });
	vs_notice notices[4];
	vs_completion completions[4] = { 0 };
	struct vring_used_elem used;

	(void)state;
	for (uint32_t i = 0; i < 4; i++) {
		struct buffer buffers[] = { { new_header(driver, inquiry, i), HEADER, false },
					    { new_response(driver), RESPONSE, true } };
		driver_offer(driver, REQUEST, driver_chain(driver, REQUEST, buffers, 2));
	}
	driver_run(driver);
	assert_int_equal(vs_device_take(driver->device, notices, 4), 4);
	for (uint32_t i = 0; i < 4; i++)
		completions[i] = (vs_completion){ .request = notices[3 - i].request, .response_length = RESPONSE };
	assert_int_equal(vs_complete(driver->device, completions, 4), 0);
	driver_run(driver);
	for (uint32_t i = 0; i < 4; i++) {
		assert_true(driver_used(driver, REQUEST, &used));
		assert_int_equal(used.id, (3 - i) * 2);
	}
	assert_int_equal(driver_counters(driver, REQUEST).calls, 1);
	driver_free(driver);
}

static void test_an_answer_that_does_not_fit_holds_up_no_other(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });
	vs_notice notices[3];
	vs_completion completions[3] = { 0 };
	struct vring_used_elem used;

	(void)state;
	for (uint32_t i = 0; i < 3; i++) {
		struct buffer buffers[] = { { new_header(driver, inquiry, i), HEADER, false },
					    { new_response(driver), RESPONSE, true } };
		driver_offer(driver, REQUEST, driver_chain(driver, REQUEST, buffers, 2));
	}
	driver_run(driver);
	assert_int_equal(vs_device_take(driver->device, notices, 3), 3);
	for (uint32_t i = 0; i < 3; i++)
		completions[i] = (vs_completion){ .request = notices[i].request,
						  .response_length = RESPONSE,
						  .data_in_length = i == 1 };
	assert_int_equal(vs_complete(driver->device, completions, 3), -EINVAL);
	for (uint32_t i = 0; i < 3; i += 2) {
		assert_true(driver_used(driver, REQUEST, &used));
		assert_int_equal(used.id, i * 2);
	}
	assert_false(driver_used(driver, REQUEST, &used));
	completions[1].data_in_length = 0;
	assert_int_equal(vs_complete(driver->device, &completions[1], 1), 0);
	assert_true(driver_used(driver, REQUEST, &used));
	driver_free(driver);
}

/* ---- the control queue ---- */

static void test_a_task_management_request_comes_with_its_short_header(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });
	struct virtio_scsi_ctrl_tmf_req tmf = { .type = VIRTIO_SCSI_T_TMF,
						.subtype = VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET };
	struct virtio_scsi_ctrl_tmf_resp answer = { .response = VIRTIO_SCSI_S_FUNCTION_SUCCEEDED };
	uint64_t request = driver_allocate(driver, 0, sizeof(tmf), 8), response = driver_allocate(driver, 0, 1, 8);
	struct buffer buffers[] = { { request, sizeof(tmf), false }, { response, 1, true } };
	struct vring_used_elem used;
	vs_notice notice;

	(void)state;
	driver_write(driver, request, &tmf, sizeof(tmf));
	driver_offer(driver, CONTROL, driver_chain(driver, CONTROL, buffers, 2));
	driver_run(driver);
	assert_true(driver_notice(driver, &notice));
	assert_int_equal(notice.kind, VS_NOTICE_REQUEST);
	assert_int_equal(notice.vring, CONTROL);
	assert_int_equal(notice.header_length, sizeof(tmf));
	assert_memory_equal(notice.header, &tmf, sizeof(tmf));
	assert_int_equal(notice.response_room, 1);
	complete(driver, notice.request, &answer, 1, 0);
	assert_true(driver_used(driver, CONTROL, &used));
	assert_int_equal(used.len, 1);
	assert_int_equal(*(uint8_t *)driver_host(driver, response), VIRTIO_SCSI_S_FUNCTION_SUCCEEDED);
	driver_free(driver);
}

/* ---- events ---- */

static void offer_event_buffer(struct driver *driver, uint64_t guest, uint32_t length)
{
	struct buffer buffer = { guest, length, true };

	driver_offer(driver, EVENT, driver_chain(driver, EVENT, &buffer, 1));
	driver_kick(driver, EVENT);
}

static void test_an_event_takes_a_buffer_only_when_sent(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });
	struct virtio_scsi_event event = { .event = VIRTIO_SCSI_T_TRANSPORT_RESET,
					   .reason = VIRTIO_SCSI_EVT_RESET_RESCAN };
	uint64_t buffer = driver_allocate(driver, 0, 2 * sizeof(event), 8);
	struct vring_used_elem used;

	(void)state;
	offer_event_buffer(driver, buffer, sizeof(event));
	offer_event_buffer(driver, buffer + sizeof(event), sizeof(event));
	driver_run(driver);
	assert_int_equal(vs_vring_in_flight(driver->device, EVENT), 0);
	assert_int_equal(vs_vring_base(driver->device, EVENT), 0);
	assert_int_equal(vs_event_send(driver->device, &event, sizeof(event)), 1);
	driver_run(driver);
	assert_true(driver_used(driver, EVENT, &used));
	assert_int_equal(used.len, sizeof(event));
	assert_memory_equal(driver_host(driver, buffer), &event, sizeof(event));
	assert_true(driver_signalled(driver->rings[EVENT].call));
	assert_int_equal(vs_vring_base(driver->device, EVENT), 1);
	assert_false(driver_used(driver, EVENT, &used));
	driver_free(driver);
}

static void test_buffers_after_a_missed_event_are_told(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });
	struct virtio_scsi_event event = { .event = VIRTIO_SCSI_T_PARAM_CHANGE };
	uint64_t buffer = driver_allocate(driver, 0, sizeof(event), 8);
	vs_notice notice;

	(void)state;
	assert_int_equal(vs_event_send(driver->device, &event, sizeof(event)), 0);
	driver_run(driver);
	assert_false(driver_notice(driver, &notice));
	offer_event_buffer(driver, buffer, sizeof(event));
	driver_run(driver);
	assert_true(driver_notice(driver, &notice));
	assert_int_equal(notice.kind, VS_NOTICE_EVENTS);
	assert_int_equal(vs_event_send(driver->device, &event, sizeof(event)), 1);
	driver_free(driver);
}

static void test_an_event_buffer_that_lies_breaks_only_the_event_queue(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });
	struct virtio_scsi_event event = { .event = VIRTIO_SCSI_T_PARAM_CHANGE };
	struct buffer in = data_in(driver, BLOCK);

	(void)state;
	offer_event_buffer(driver, 1ull << 40, sizeof(event));
	assert_true(vs_event_send(driver->device, &event, sizeof(event)) <= 0);
	driver_run(driver);
	assert_true(driver_broken(driver, EVENT));
	assert_true(driver_signalled(driver->rings[EVENT].error));
	for (vs_notice notice; driver_notice(driver, &notice);)
		assert_int_equal(notice.kind, VS_NOTICE_BROKEN);
	assert_good(command(driver, read_10(0, 1), NULL, 0, &in, 1), RESPONSE + BLOCK);
	driver_free(driver);
}

static void test_an_event_buffer_smaller_than_the_event_gets_what_fits_or_breaks(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });
	struct virtio_scsi_event event = { .event = VIRTIO_SCSI_T_PARAM_CHANGE };
	uint64_t buffer = driver_allocate(driver, 0, sizeof(event), 8);
	uint8_t *beyond = (uint8_t *)driver_host(driver, buffer) + 4;
	struct vring_used_elem used;

	(void)state;
	memset(beyond, 0x55, 12);
	offer_event_buffer(driver, buffer, 4);
	int sent = vs_event_send(driver->device, &event, sizeof(event));
	driver_run(driver);
	if (sent == 1) {
		assert_true(driver_used(driver, EVENT, &used));
		assert_int_equal(used.len, 4);
	} else {
		assert_true(driver_broken(driver, EVENT));
	}
	for (uint32_t i = 0; i < 12; i++)
		assert_int_equal(beyond[i], 0x55);
	driver_free(driver);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_notice_carries_header_and_lengths),
		cmocka_unit_test(test_the_notice_descriptor_is_readable_until_all_is_taken),
		cmocka_unit_test(test_data_out_is_read_in_pieces),
		cmocka_unit_test(test_bytes_that_python_moved_are_counted),
		cmocka_unit_test(test_data_in_and_response_reach_the_guest),
		cmocka_unit_test(test_completions_come_in_any_order_with_one_interrupt_a_call),
		cmocka_unit_test(test_an_answer_that_does_not_fit_holds_up_no_other),
		cmocka_unit_test(test_a_task_management_request_comes_with_its_short_header),
		cmocka_unit_test(test_an_event_takes_a_buffer_only_when_sent),
		cmocka_unit_test(test_buffers_after_a_missed_event_are_told),
		cmocka_unit_test(test_an_event_buffer_that_lies_breaks_only_the_event_queue),
		cmocka_unit_test(test_an_event_buffer_smaller_than_the_event_gets_what_fits_or_breaks),
	};

	return cmocka_run_group_tests_name("slow path", tests, NULL, NULL);
}
