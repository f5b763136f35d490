/*
 * test_vring_control.c - rings sized, addressed, started, enabled, stopped and read back, and what is refused.
 */
#include "commands.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { HEADER = sizeof(struct virtio_scsi_cmd_req), RESPONSE = sizeof(struct virtio_scsi_cmd_resp) };

static void offer_read(struct driver *driver)
{
	struct buffer buffers[] = { { new_header(driver, read_10(0, 1), 1), HEADER, false },
				    { new_response(driver), RESPONSE, true },
				    data_in(driver, BLOCK) };

	driver_offer(driver, REQUEST, driver_chain(driver, REQUEST, buffers, 3));
}

static void offer_slow(struct driver *driver)
{
	struct buffer buffers[] = { { new_header(driver, test_unit_ready(), 1), HEADER, false },
				    { new_response(driver), RESPONSE, true } };

	driver_offer(driver, REQUEST, driver_chain(driver, REQUEST, buffers, 2));
}

static void complete(struct driver *driver, vs_request *request)
{
	vs_completion completion = { .request = request, .response_length = RESPONSE };

	assert_int_equal(vs_complete(driver->device, &completion, 1), 0);
	driver_run(driver);
}

static void test_a_device_needs_three_rings_and_at_most_66(void **state)
{
	static const uint32_t counts[] = { 0, 1, 2, VS_MAX_VRINGS + 1, UINT32_MAX };

	(void)state;
	for (uint32_t i = 0; i < COUNT(counts); i++) {
		const vs_settings settings = { .vrings = counts[i] };

		errno = 0;
		assert_null(vs_device_new(&settings));
		assert_int_equal(errno, EINVAL);
	}
}

static void test_a_ring_size_is_a_power_of_two_up_to_32768(void **state)
{
	static const uint32_t bad[] = { 0, 3, 100, 32769, 65536, UINT32_MAX };

	(void)state;
	for (uint32_t i = 0; i < COUNT(bad); i++) {
		struct driver *driver = driver_new((struct setup){ .not_started = true });
		int error = vs_vring_set_size(driver->device, REQUEST, bad[i]);

		error = error ? error : vs_vring_start(driver->device, REQUEST);
		assert_int_equal(error, -EINVAL);
		driver_free(driver);
	}
}

static void test_a_ring_that_is_not_there_is_refused_by_every_call(void **state)
{
	struct driver *driver = driver_new((struct setup){ 0 });
	static const uint32_t indices[] = { 3, 66, UINT32_MAX };
	vs_vring_counters counters;

	(void)state;
	for (uint32_t i = 0; i < COUNT(indices); i++) {
		uint32_t ring = indices[i];

		assert_true(vs_vring_set_size(driver->device, ring, 64) < 0);
		assert_true(vs_vring_set_base(driver->device, ring, 0) < 0);
		assert_true(vs_vring_set_addresses(driver->device, ring, 0, 0, 0, 0, 0) < 0);
		assert_true(vs_vring_set_kick(driver->device, ring, -1) < 0);
		assert_true(vs_vring_set_call(driver->device, ring, -1) < 0);
		assert_true(vs_vring_set_error(driver->device, ring, -1) < 0);
		assert_true(vs_vring_start(driver->device, ring) < 0);
		assert_true(vs_vring_enable(driver->device, ring, 1) < 0);
		assert_true(vs_vring_stop(driver->device, ring) < 0);
		assert_true(vs_vring_base(driver->device, ring) < 0);
		assert_true(vs_vring_break(driver->device, ring) < 0);
		assert_true(vs_vring_in_flight(driver->device, ring) < 0);
		assert_true(vs_vring_count(driver->device, ring, &counters) < 0);
	}
	driver_free(driver);
}

static void test_a_ring_outside_guest_memory_or_misaligned_does_not_start(void **state)
{
	struct driver *driver = driver_new((struct setup){ .not_started = true });
	uint64_t user = driver->regions[0].user, size = driver->regions[0].size;
	uint64_t fine[3] = { user + PAGE, user + 2 * PAGE, user + 3 * PAGE };
	const struct {
		uint64_t desc, used, avail;
	} bad[] = {
		{ user + size, fine[1], fine[2] },     { fine[0], user + size, fine[2] },
		{ fine[0], fine[1], user + size },     { user + size - 16, fine[1], fine[2] },
		{ fine[0], user + size - 4, fine[2] }, { fine[0], fine[1], user + size - 4 },
		{ fine[0] + 8, fine[1], fine[2] },     { fine[0], fine[1] + 2, fine[2] },
		{ fine[0], fine[1], fine[2] + 1 },     { UINT64_MAX - 15, fine[1], fine[2] },
	};

	(void)state;
	assert_int_equal(vs_vring_set_size(driver->device, REQUEST, 64), 0);
	assert_true(vs_vring_start(driver->device, REQUEST) < 0); /* no addresses yet */
	for (uint32_t i = 0; i < COUNT(bad); i++) {
		int error =
			vs_vring_set_addresses(driver->device, REQUEST, 0, bad[i].desc, bad[i].used, bad[i].avail, 0);

		error = error ? error : vs_vring_start(driver->device, REQUEST);
		assert_true(error < 0);
	}
	assert_int_equal(vs_vring_set_addresses(driver->device, REQUEST, 0, fine[0], fine[1], fine[2], 0), 0);
	assert_int_equal(vs_vring_start(driver->device, REQUEST), 0);
	driver_free(driver);
}

static void test_addresses_that_are_refused_leave_a_running_ring_as_it_was(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });
	struct buffer in = data_in(driver, BLOCK);

	(void)state;
	for (uint32_t i = 1; i <= 3; i++) {
		assert_good(command(driver, read_10(0, 1), NULL, 0, &in, 1),
			    sizeof(struct virtio_scsi_cmd_resp) + BLOCK);
		assert_true(vs_vring_set_addresses(driver->device, REQUEST, 1, 0, 0, 0, 0) < 0);
		assert_int_equal(driver_counters(driver, REQUEST).completed, i);
		assert_true(driver_counters(driver, REQUEST).started);
	}
	driver_free(driver);
}

static void test_nothing_is_fetched_until_started_and_enabled(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });
	struct vring_used_elem used;

	(void)state;
	assert_int_equal(vs_vring_enable(driver->device, REQUEST, 0), 0);
	offer_read(driver);
	driver_run(driver);
	assert_false(driver_used(driver, REQUEST, &used));
	assert_int_equal(vs_vring_enable(driver->device, REQUEST, 1), 0);
	driver_run(driver);
	assert_true(driver_used(driver, REQUEST, &used));
	assert_int_equal(vs_vring_stop(driver->device, REQUEST), 0);
	offer_read(driver);
	driver_run(driver);
	assert_false(driver_used(driver, REQUEST, &used));
	driver_free(driver);
}

/* QEMU 7.2: SET_VRING_CALL follows the start of the rings, and the guest may have kicked in between */
static void test_a_running_rings_new_call_descriptor_is_signalled_at_once(void **state)
{
	struct driver *driver = driver_new((struct setup){ .not_started = true });
	int early = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), late = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	eventfd_t count;

	(void)state;
	assert_int_equal(vs_vring_set_call(driver->device, REQUEST, early), 0);
	assert_true(eventfd_read(early, &count) < 0); /* nothing can have been missed before the start */
	driver_start_ring(driver, REQUEST);
	assert_int_equal(vs_vring_set_call(driver->device, REQUEST, late), 0);
	assert_int_equal(eventfd_read(late, &count), 0);
	close(early);
	close(late);
	driver_free(driver);
}

static void test_a_stopped_ring_goes_on_from_its_base(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });
	struct vring_used_elem used;

	(void)state;
	for (uint32_t i = 0; i < 3; i++)
		offer_read(driver);
	driver_run(driver);
	assert_int_equal(vs_vring_stop(driver->device, REQUEST), 0);
	assert_int_equal(vs_vring_base(driver->device, REQUEST), 3);
	offer_read(driver);
	/* as a front-end does after GET_VRING_BASE */
	assert_int_equal(vs_vring_set_base(driver->device, REQUEST, 3), 0);
	assert_int_equal(vs_vring_start(driver->device, REQUEST), 0);
	driver_run(driver);
	for (uint32_t i = 0; i < 4; i++)
		assert_true(driver_used(driver, REQUEST, &used));
	assert_int_equal(vs_vring_base(driver->device, REQUEST), 4);
	driver_free(driver);
}

static void test_a_base_beyond_16_bits_is_refused(void **state)
{
	struct driver *driver = driver_new((struct setup){ .not_started = true });

	(void)state;
	assert_int_equal(vs_vring_set_base(driver->device, REQUEST, 65535), 0);
	assert_int_equal(vs_vring_base(driver->device, REQUEST), 65535);
	assert_int_equal(vs_vring_set_base(driver->device, REQUEST, 65536), -EINVAL);
	driver_free(driver);
}

static void test_a_stopped_ring_tells_when_its_last_request_is_answered(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });
	struct vring_used_elem used;
	vs_notice request, notice;

	(void)state;
	offer_slow(driver);
	driver_run(driver);
	assert_true(driver_notice(driver, &request));
	assert_int_equal(vs_vring_in_flight(driver->device, REQUEST), 1);
	assert_int_equal(vs_vring_stop(driver->device, REQUEST), 0);
	driver_run(driver);
	assert_false(driver_notice(driver, &notice));
	assert_int_equal(vs_vring_base(driver->device, REQUEST), 1);
	complete(driver, request.request);
	assert_true(driver_used(driver, REQUEST, &used));
	assert_int_equal(vs_vring_in_flight(driver->device, REQUEST), 0);
	assert_true(driver_notice(driver, &notice));
	assert_int_equal(notice.kind, VS_NOTICE_IDLE);
	assert_int_equal(notice.vring, REQUEST);
	driver_free(driver);
}

static void test_addresses_may_change_on_a_started_ring(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ .features = FEATURE(LOG_ALL) });
	struct ring *ring = &driver->rings[REQUEST];
	struct vring_used_elem used;
	uint64_t elsewhere = driver_allocate(driver, 0, 6 + 8 * 64, PAGE);

	(void)state;
	offer_read(driver);
	driver_run(driver);
	assert_true(driver_used(driver, REQUEST, &used));
	/* QEMU sends the same addresses again with the log flag when a migration begins; here the used ring moves too */
	memcpy(driver_host(driver, elsewhere), ring->used, 6 + 8 * 64);
	ring->used = driver_host(driver, elsewhere);
	assert_int_equal(vs_vring_set_addresses(driver->device, REQUEST, 1, driver_user(driver, ring->desc_guest),
						driver_user(driver, elsewhere), driver_user(driver, ring->avail_guest),
						elsewhere),
			 0);
	offer_read(driver);
	driver_run(driver);
	assert_true(driver_used(driver, REQUEST, &used));
	driver_free(driver);
}

static void test_python_can_break_a_ring(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ .rings = 4 });
	struct buffer in = data_in(driver, BLOCK);
	struct vring_used_elem used;
	vs_notice notice;

	(void)state;
	assert_int_equal(vs_vring_break(driver->device, REQUEST), 0);
	assert_true(driver_signalled(driver->rings[REQUEST].error));
	offer_read(driver);
	driver_run(driver);
	assert_false(driver_used(driver, REQUEST, &used));
	assert_true(driver_notice(driver, &notice));
	assert_int_equal(notice.kind, VS_NOTICE_BROKEN);
	assert_good(command_on(driver, REQUEST + 1, read_10(0, 1), NULL, 0, &in, 1), RESPONSE + BLOCK);
	driver_free(driver);
}

static void test_a_broken_ring_with_a_request_at_python_drops_the_answer(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });
	struct vring_used_elem used;
	vs_notice notice;

	(void)state;
	offer_slow(driver);
	driver_run(driver);
	assert_true(driver_notice(driver, &notice));
	assert_int_equal(vs_vring_break(driver->device, REQUEST), 0);
	complete(driver, notice.request);
	assert_false(driver_used(driver, REQUEST, &used));
	assert_int_equal(vs_vring_in_flight(driver->device, REQUEST), 0);
	driver_free(driver);
}

static void test_a_new_start_mends_a_broken_ring(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });
	struct vring_used_elem used;

	(void)state;
	driver_offer(driver, REQUEST, 999);
	driver_run(driver);
	assert_true(driver_broken(driver, REQUEST));
	/* a guest that reboots sets its rings up from nothing */
	assert_int_equal(vs_vring_stop(driver->device, REQUEST), 0);
	memset(driver->rings[REQUEST].avail, 0, 6 + 2 * 64);
	memset(driver->rings[REQUEST].used, 0, 6 + 8 * 64);
	driver->rings[REQUEST].next_avail = driver->rings[REQUEST].next_used = 0;
	driver_start_ring(driver, REQUEST);
	offer_read(driver);
	driver_run(driver);
	assert_true(driver_used(driver, REQUEST, &used));
	driver_free(driver);
}

static void test_fetch_all_takes_what_was_offered_before(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });

	(void)state;
	offer_slow(driver);
	offer_slow(driver);
	assert_int_equal(vs_device_fetch_all(driver->device), 0);
	assert_int_equal(vs_vring_in_flight(driver->device, REQUEST), 2);
	for (vs_notice notice; driver_notice(driver, &notice);)
		complete(driver, notice.request);
	driver_free(driver);
}

static void test_counters_count(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });
	struct buffer in = data_in(driver, PAGE), out = data_out(driver, 2 * PAGE, 1);

	(void)state;
	assert_good(command(driver, read_10(0, 8), NULL, 0, &in, 1), RESPONSE + PAGE);
	assert_good(command(driver, write_10(0, 16), &out, 1, NULL, 0), RESPONSE);
	struct answer slow = command(driver, test_unit_ready(), NULL, 0, NULL, 0);
	assert_slow(slow);
	vs_vring_counters counters = driver_counters(driver, REQUEST);
	assert_int_equal(counters.fetched, 3);
	assert_int_equal(counters.completed, 2);
	assert_int_equal(counters.slow, 1);
	assert_int_equal(counters.calls, 2);
	assert_int_equal(counters.bytes_read, PAGE);
	assert_int_equal(counters.bytes_written, 2 * PAGE);
	assert_int_equal(counters.in_flight, 1);
	assert_true(counters.started && counters.enabled && !counters.broken);
	complete(driver, slow.notice.request);
	driver_free(driver);
}

static void test_loop_threads_answer_kicks(void **state)
{
	static const uint32_t polls[] = { 0, 50000 };

	(void)state;
	for (uint32_t i = 0; i < COUNT(polls); i++) {
		struct setup setup = { .rings = 4, .threads = 2, .poll_ns = polls[i], .io_uring = true };
		struct driver *driver = driver_with_disk(ON_MEMORY, setup);
		struct vring_used_elem used;

		for (uint32_t turn = 0; turn < 20; turn++)
			for (uint32_t ring = REQUEST; ring < 4; ring++) {
				struct buffer buffers[] = { { new_header(driver, read_10(turn, 1), 1), HEADER, false },
							    { new_response(driver), RESPONSE, true },
							    data_in(driver, BLOCK) };

				driver_offer(driver, ring, driver_chain(driver, ring, buffers, 3));
				driver_kick(driver, ring);
				assert_true(driver_wait(driver, ring));
				assert_true(driver_used(driver, ring, &used));
			}
		driver_free(driver);
	}
	(void)state;
}

static void test_a_full_call_descriptor_in_blocking_mode_holds_nothing_up(void **state)
{
	struct driver *driver = driver_with_disk(ON_MEMORY, (struct setup){ 0 });
	uint64_t almost_full = UINT64_MAX - 1;
	int call = eventfd(0, EFD_CLOEXEC);
	struct vring_used_elem used;

	(void)state;
	assert_int_equal(write(call, &almost_full, sizeof(almost_full)), sizeof(almost_full));
	alarm(20); /* the only way to see a hang */
	assert_int_equal(vs_vring_set_call(driver->device, REQUEST, call), 0);
	offer_read(driver);
	driver_run(driver);
	alarm(0);
	assert_true(driver_used(driver, REQUEST, &used));
	close(call);
	driver_free(driver);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_device_needs_three_rings_and_at_most_66),
		cmocka_unit_test(test_a_ring_size_is_a_power_of_two_up_to_32768),
		cmocka_unit_test(test_a_ring_that_is_not_there_is_refused_by_every_call),
		cmocka_unit_test(test_a_ring_outside_guest_memory_or_misaligned_does_not_start),
		cmocka_unit_test(test_addresses_that_are_refused_leave_a_running_ring_as_it_was),
		cmocka_unit_test(test_nothing_is_fetched_until_started_and_enabled),
		cmocka_unit_test(test_a_running_rings_new_call_descriptor_is_signalled_at_once),
		cmocka_unit_test(test_a_stopped_ring_goes_on_from_its_base),
		cmocka_unit_test(test_a_base_beyond_16_bits_is_refused),
		cmocka_unit_test(test_a_stopped_ring_tells_when_its_last_request_is_answered),
		cmocka_unit_test(test_addresses_may_change_on_a_started_ring),
		cmocka_unit_test(test_python_can_break_a_ring),
		cmocka_unit_test(test_a_broken_ring_with_a_request_at_python_drops_the_answer),
		cmocka_unit_test(test_a_new_start_mends_a_broken_ring),
		cmocka_unit_test(test_fetch_all_takes_what_was_offered_before),
		cmocka_unit_test(test_counters_count),
		cmocka_unit_test(test_loop_threads_answer_kicks),
		cmocka_unit_test(test_a_full_call_descriptor_in_blocking_mode_holds_nothing_up),
	};

	return cmocka_run_group_tests_name("vring control", tests, NULL, NULL);
}
