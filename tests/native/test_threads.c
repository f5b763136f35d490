/*
 * test_threads.c - loop threads under load while control calls and Python's answers come from another thread. What is shared
 * wrongly shows under SANITIZE=thread; here every request must still be answered once, whoever answers it.
 *
 *     guest threads, one a ring --kick--> loop threads        main: gates, maps, rings enabled and not, notices answered
 */
#define _GNU_SOURCE
#include "commands.h"

#include <pthread.h>
#include <string.h>
#include <unistd.h>

enum { RINGS = 4, LAST = RINGS - 1, REQUESTS = 400, RESPONSE = sizeof(struct virtio_scsi_cmd_resp) };

struct guest {
	struct driver *driver;
	uint32_t ring, answered;
	struct buffer read[3], write[3];
	pthread_t thread;
	_Atomic bool done, failed;
};

/* One request after the other, reads and writes in turn; each must come back with its own head. */
static void *guest_main(void *argument)
{
	struct guest *guest = argument;

	for (uint32_t i = 0; i < REQUESTS && !guest->failed; i++) {
		uint16_t head = driver_chain(guest->driver, guest->ring, i % 2 ? guest->read : guest->write, 3);
		struct vring_used_elem used = { 0 };

		driver_offer(guest->driver, guest->ring, head);
		driver_kick(guest->driver, guest->ring);
		if (!driver_wait(guest->driver, guest->ring) || !driver_used(guest->driver, guest->ring, &used) ||
		    used.id != head)
			guest->failed = true;
		else
			guest->answered++;
	}
	guest->done = true;
	return NULL;
}

static void begin(struct guest *guest, struct driver *driver, uint32_t ring)
{
	struct buffer header_in = { new_header(driver, read_10(ring * 64, 8), ring), 51, false };
	struct buffer header_out = { new_header(driver, write_10(ring * 64, 8), ring), 51, false };
	struct buffer response = { new_response(driver), RESPONSE, true };

	*guest = (struct guest){ .driver = driver, .ring = ring };
	memcpy(guest->read, (struct buffer[]){ header_in, response, data_in(driver, PAGE) }, sizeof(guest->read));
	memcpy(guest->write, (struct buffer[]){ header_out, data_out(driver, PAGE, 9), response },
	       sizeof(guest->write));
	assert_int_equal(pthread_create(&guest->thread, NULL, guest_main, guest), 0);
}

static void answer_notices(vs_device *device)
{
	vs_notice notices[8];
	int count = vs_device_take(device, notices, COUNT(notices));

	for (int i = 0; i < count; i++) {
		vs_completion completion = { .request = notices[i].request, .response_length = RESPONSE };

		if (notices[i].kind == VS_NOTICE_REQUEST)
			assert_int_equal(vs_complete(device, &completion, 1), 0);
	}
}

/* What Python does meanwhile; `turn` chooses. */
static void control(struct driver *driver, uint32_t turn)
{
	vs_device *device = driver->device;
	vs_lun_settings settings = open_lun();
	vs_vring_counters counters;
	uint32_t ring = REQUEST + turn % (RINGS - REQUEST);

	switch (turn % 7) {
	case 0:
		settings.gate = turn % 3 ? VS_GATE_READ | VS_GATE_WRITE | VS_GATE_FLUSH : 0;
		assert_int_equal(vs_lun_set(device, 0, 0, driver->volume, &settings), 0);
		break;
	case 1: assert_int_equal(vs_vring_count(device, ring, &counters), 0); break;
	case 2: assert_true(vs_lun_in_flight(device, 0, 0, 0, 1) >= 0); break;
	case 3: assert_int_equal(vs_device_fetch_all(device), 0); break;
	case 4: assert_int_equal(vs_vring_set_call(device, ring, driver->rings[ring].call), 0); break;
	case 5: assert_int_equal(vs_vring_enable(device, ring, 0), 0); break;
	default: assert_int_equal(vs_volume_set_run(driver->volume, 100, 20, entry_of(VS_DATA, 0, 100 << 16)), 0);
	}
	assert_int_equal(vs_vring_enable(device, ring, 1), 0);
	answer_notices(device);
	usleep(200);
}

static void under_control(enum medium medium, uint32_t threads, uint32_t poll_ns)
{
	struct setup setup = { .rings = RINGS, .threads = threads, .poll_ns = poll_ns, .io_uring = true };
	struct driver *driver = driver_with_disk(medium, setup);
	struct guest guests[RINGS];

	for (uint32_t ring = REQUEST; ring <= LAST; ring++)
		begin(&guests[ring], driver, ring);
	for (uint32_t turn = 0; !guests[REQUEST].done || !guests[LAST].done; turn++)
		control(driver, turn);
	for (uint32_t ring = REQUEST; ring <= LAST; ring++) {
		assert_int_equal(pthread_join(guests[ring].thread, NULL), 0);
		assert_false(guests[ring].failed);
		assert_int_equal(guests[ring].answered, REQUESTS);
	}
	driver_free(driver);
}

static void test_requests_are_answered_once_while_python_interferes(void **state)
{
	static const enum medium media[] = { ON_MEMORY, ON_TMPFS, ON_DISK, ON_DISK_DIRECT };

	(void)state;
	for (uint32_t m = 0; m < COUNT(media); m++) {
		under_control(media[m], 1, 0);
		under_control(media[m], 2, 20000);
	}
}

/* Where the device says from which chain on it wants a kick (virtio 1.2 2.7.10); waits until that is `chain`. */
static bool asks_for_kicks_from(const struct ring *ring, uint16_t chain)
{
	const uint16_t *event = (const uint16_t *)(const void *)&ring->used->ring[ring->size];

	for (uint32_t turn = 0; turn < 10000; turn++) {
		if (__atomic_load_n(event, __ATOMIC_ACQUIRE) == chain)
			return true;
		usleep(1000);
	}
	return false;
}

static void test_the_loop_asks_for_kicks_anew_after_others_fetched_its_chains(void **state)
{
	struct setup setup = { .threads = 1, .features = FEATURE(EVENT_IDX) };
	struct driver *driver = driver_with_disk(ON_MEMORY, setup);
	struct vring_used_elem used;

	(void)state;
	struct buffer chain[3] = { { new_header(driver, read_10(0, 8), 1), 51, false },
				   { new_response(driver), RESPONSE, true },
				   data_in(driver, PAGE) };
	driver_offer(driver, REQUEST, driver_chain(driver, REQUEST, chain, 3));
	driver_kick(driver, REQUEST);
	assert_true(driver_wait(driver, REQUEST) && driver_used(driver, REQUEST, &used));
	assert_true(asks_for_kicks_from(&driver->rings[REQUEST], 1));
	driver_offer(driver, REQUEST, driver_chain(driver, REQUEST, chain, 3));
	assert_int_equal(vs_device_fetch_all(driver->device), 0);
	assert_true(driver_wait(driver, REQUEST) && driver_used(driver, REQUEST, &used));
	assert_true(asks_for_kicks_from(&driver->rings[REQUEST], 2));
	driver_free(driver);
}

static void test_a_file_is_read_and_written_while_its_end_moves(void **state)
{
	struct driver *driver = driver_with_disk(ON_TMPFS, (struct setup){ .threads = 1, .poll_ns = 20000 });
	vs_lun_settings settings = open_lun();
	struct guest guest;

	(void)state;
	settings.blocks = 512; /* the file's first 256 KiB, which stay */
	assert_int_equal(vs_lun_set(driver->device, 0, 0, driver->volume, &settings), 0);
	begin(&guest, driver, REQUEST);
	for (uint64_t turn = 0; !guest.done; turn++) {
		uint64_t length = turn % 2 ? DISK_LENGTH : DISK_LENGTH / 8;

		assert_int_equal(ftruncate(driver->disk, (off_t)length), 0);
		assert_int_equal(vs_volume_resize(driver->volume, length), 0);
		assert_int_equal(vs_volume_set_run(driver->volume, 0, length / 65536, entry_of(VS_DATA, 0, 0)), 0);
	}
	assert_int_equal(pthread_join(guest.thread, NULL), 0);
	assert_int_equal(guest.answered, REQUESTS);
	driver_free(driver);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_requests_are_answered_once_while_python_interferes),
		cmocka_unit_test(test_the_loop_asks_for_kicks_anew_after_others_fetched_its_chains),
		cmocka_unit_test(test_a_file_is_read_and_written_while_its_end_moves),
	};

	return cmocka_run_group_tests_name("threads", tests, NULL, NULL);
}
