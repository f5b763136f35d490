/*
 * device.c - the control side of the seam: what Python asks of a device as a whole, done under the loops' locks.
 * Arguments are checked here (and in control.c, slow.c); past these files they are trusted.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

void device_lock(struct vs_device *device)
{
	for (uint32_t i = 0; i < device->loop_count; i++)
		loop_lock(&device->loops[i]);
}

void device_unlock(struct vs_device *device)
{
	for (uint32_t i = device->loop_count; i--;)
		loop_unlock(&device->loops[i]);
}

/* ---- life ---------------------------------------------------------------------------------------- */

static int open_loops(struct vs_device *device)
{
	uint32_t count = device->settings.threads ? device->settings.threads : 1;
	int error = 0;

	device->loops = calloc(count, sizeof(*device->loops));
	if (!device->loops)
		return -ENOMEM;
	for (uint32_t i = 0; i < count; i++)
		device->loops[i].epoll = device->loops[i].wake = -1;
	for (uint32_t i = 0; i < count && !error; i++) {
		device->loop_count = i + 1;
		error = loop_open(&device->loops[i], device, i);
	}
	for (uint32_t i = 0; i < device->settings.vrings && !error; i++) {
		struct vring *ring = &device->rings[i];
		struct loop *loop = &device->loops[i < 2 ? 0 : (i - 2) % count];

		*ring = (struct vring){
			.device = device, .loop = loop, .index = i, .kick = -1, .call = -1, .error = -1
		};
	}
	for (uint32_t i = 0; i < device->settings.threads && !error; i++)
		error = loop_run(&device->loops[i]);
	return error;
}

vs_device *vs_device_new(const vs_settings *settings)
{
	struct vs_device *device;
	int error;

	if (settings->vrings < 3 || settings->vrings > VS_MAX_VRINGS || settings->threads > VS_MAX_VRINGS) {
		errno = EINVAL;
		return NULL;
	}
	device = calloc(1, sizeof(*device));
	if (!device)
		return NULL;
	device->settings = *settings;
	device->notices_tail = &device->notices;
	pthread_mutex_init(&device->notice_lock, NULL);
	device->notice_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	error = device->notice_fd < 0 ? -errno : fault_install();
	if (!error)
		error = open_loops(device);
	if (error) {
		vs_device_free(device);
		errno = -error;
		return NULL;
	}
	return device;
}

static void free_luns(struct vs_device *device)
{
	for (unsigned target = 0; target < MAX_TARGETS; target++) {
		struct lun_table *table = device->targets[target];

		for (uint32_t i = 0; table && i < table->room; i++)
			if (table->luns[i]) {
				vs_volume_release(table->luns[i]->volume);
				free(table->luns[i]);
			}
		free(table);
	}
}

void vs_device_free(vs_device *device)
{
	for (uint32_t i = 0; i < device->loop_count; i++)
		loop_close(&device->loops[i]);
	for (uint32_t i = 0; i < device->settings.vrings && device->loop_count; i++) {
		struct vring *ring = &device->rings[i];
		int fds[] = { ring->kick, ring->call, ring->error };

		for (unsigned k = 0; k < 3; k++)
			if (ring->device && fds[k] >= 0)
				close(fds[k]);
	}
	for (struct vs_request *next, *request = device->notices; request; request = next) {
		next = request->next;
		request_destroy(request);
	}
	inflight_unmap(device);
	free(device->loops);
	free_luns(device);
	guest_memory_clear(&device->memory);
	if (device->notice_fd >= 0)
		close(device->notice_fd);
	pthread_mutex_destroy(&device->notice_lock);
	free(device);
}

unsigned vs_device_step(struct vs_device *device)
{
	unsigned done = 0;

	for (uint32_t i = 0; i < device->loop_count; i++) {
		loop_lock(&device->loops[i]);
		done += loop_step(&device->loops[i]);
		loop_unlock(&device->loops[i]);
	}
	return done;
}

/* ---- memory, features, log -------------------------------------------------------------------------- */

int vs_memory_add(vs_device *device, uint64_t guest_address, uint64_t size, uint64_t user_address, int fd,
		  uint64_t mmap_offset)
{
	struct region region = { .guest = guest_address, .size = size, .user = user_address };

	device_lock(device);
	int error = guest_memory_add(&device->memory, &region, fd, mmap_offset);
	device_unlock(device);
	return error;
}

/* Rings hold addresses of their own, requests those of their buffers. */
static bool memory_in_use(const struct vs_device *device)
{
	for (uint32_t i = 0; i < device->settings.vrings; i++)
		if (device->rings[i].started || device->rings[i].in_flight)
			return true;
	return false;
}

int vs_memory_remove(vs_device *device, uint64_t guest_address, uint64_t size, uint64_t user_address)
{
	int error = -EBUSY;

	device_lock(device);
	if (!memory_in_use(device)) {
		for (uint32_t i = 0; i < device->settings.vrings; i++)
			device->rings[i].used = NULL;
		error = guest_memory_remove(&device->memory, guest_address, size, user_address);
	}
	device_unlock(device);
	return error;
}

int vs_device_set_features(vs_device *device, uint64_t virtio_features)
{
	device_lock(device);
	device->features = virtio_features;
	device->event_index = virtio_features >> FEATURE_EVENT_IDX & 1;
	device->indirect = virtio_features >> FEATURE_INDIRECT & 1;
	device->logging = (virtio_features >> FEATURE_LOG_ALL & 1) && device->memory.log;
	device_unlock(device);
	return 0;
}

int vs_device_set_log(vs_device *device, int fd, uint64_t size, uint64_t offset)
{
	device_lock(device);
	int error = guest_memory_set_log(&device->memory, fd, size, offset);
	device->logging = (device->features >> FEATURE_LOG_ALL & 1) && device->memory.log;
	device_unlock(device);
	return error;
}

int vs_device_set_fast_rows(vs_device *device, const vs_fast_row *rows, uint32_t count)
{
	int error = 0;

	if (count > 256)
		return -EINVAL;
	for (uint32_t i = 0; i < count; i++)
		if (rows[i].lba_at + rows[i].lba_width > 32 || rows[i].length_at + rows[i].length_width > 32 ||
		    rows[i].lba_width > 8 || rows[i].length_width > 8 || rows[i].fua_at > 31 || rows[i].unmap_at > 31 ||
		    rows[i].ndob_at > 31 || rows[i].kind < VS_READ || rows[i].kind > VS_UNMAP)
			error = -EINVAL;
	if (error)
		return error;
	device_lock(device);
	memset(device->fast, 0, sizeof(device->fast));
	for (uint32_t i = 0; i < count; i++) {
		device->rows[i] = rows[i];
		device->fast[rows[i].opcode] = &device->rows[i];
	}
	device_unlock(device);
	return 0;
}

/* ---- LUNs --------------------------------------------------------------------------------------------- */

/* virtio 1.2 5.6.6.1: byte 0 is 1, byte 1 the target, bytes 2-3 the LUN by either single-level method of SAM. */
struct lun *device_lun(const struct vs_device *device, const uint8_t lun[8])
{
	uint32_t number = (uint32_t)(lun[2] & 0x3F) << 8 | lun[3];
	const struct lun_table *table = device->targets[lun[1]];
	uint32_t rest;

	memcpy(&rest, lun + 4, sizeof(rest));
	if (lun[0] != 1 || lun[2] & 0x80 || rest || !table || number >= table->room)
		return NULL;
	/* peripheral device addressing (00b) has 8 bits of LUN; the other 6 are a bus number */
	if (!(lun[2] & 0x40) && (lun[2] & 0x3F))
		return NULL;
	return table->luns[number];
}

static struct lun **lun_slot(struct vs_device *device, uint32_t target, uint32_t lun, bool make)
{
	struct lun_table *table = device->targets[target];

	if (table && lun < table->room)
		return &table->luns[lun];
	if (!make)
		return NULL;
	uint32_t old = table ? table->room : 0, room = old ? old : 8;
	while (room <= lun)
		room *= 2;
	table = realloc(table, sizeof(*table) + room * sizeof(table->luns[0]));
	if (!table)
		return NULL;
	memset(&table->luns[old], 0, (room - old) * sizeof(table->luns[0]));
	table->room = room;
	device->targets[target] = table;
	return &table->luns[lun];
}

static int fill_lun(struct vs_device *device, struct lun **slot, vs_volume *volume, const vs_lun_settings *settings)
{
	if (!*slot) {
		*slot = calloc(1, sizeof(**slot) + device->loop_count * sizeof((*slot)->counts[0]));
		if (!*slot)
			return -ENOMEM;
		(*slot)->number = ++device->luns_made;
	}
	struct lun *lun = *slot;
	if (lun->volume != volume) {
		if (lun->in_flight)
			return -EBUSY;
		atomic_fetch_add(&volume->references, 1);
		vs_volume_release(lun->volume);
		lun->volume = volume;
	}
	lun->settings = *settings;
	return 0;
}

int vs_lun_set(vs_device *device, uint32_t target, uint32_t lun, vs_volume *volume, const vs_lun_settings *settings)
{
	uint64_t bytes;

	if (target >= MAX_TARGETS || lun >= MAX_LUNS || !volume || settings->block_shift < 9 ||
	    settings->block_shift > 12)
		return -EINVAL;
	if (__builtin_mul_overflow(settings->blocks, 1ull << settings->block_shift, &bytes) ||
	    bytes > atomic_load(&volume->length))
		return -EINVAL;
	volume_map(volume);
	device_lock(device);
	struct lun **slot = lun_slot(device, target, lun, true);
	int error = slot ? fill_lun(device, slot, volume, settings) : -ENOMEM;
	device_unlock(device);
	return error;
}

int vs_lun_remove(vs_device *device, uint32_t target, uint32_t lun)
{
	struct lun *gone = NULL;
	int error = 0;

	if (target >= MAX_TARGETS)
		return -EINVAL;
	device_lock(device);
	struct lun **slot = lun_slot(device, target, lun, false);
	if (!slot || !*slot) {
		error = -ENOENT;
	} else if ((*slot)->in_flight) {
		error = -EBUSY;
	} else {
		gone = *slot;
		*slot = NULL;
	}
	device_unlock(device);
	if (gone)
		vs_volume_release(gone->volume);
	free(gone);
	return error;
}

int vs_lun_in_flight(vs_device *device, uint32_t target, uint32_t lun, uint64_t tag, int any_tag)
{
	int count = 0;

	if (target >= MAX_TARGETS)
		return -EINVAL;
	device_lock(device);
	struct lun **slot = lun_slot(device, target, lun, false);
	for (uint32_t i = 0; slot && *slot && i < device->loop_count; i++)
		for (struct vs_request *r = device->loops[i].newest; r; r = r->older)
			count += r->lun == *slot && (any_tag || r->tag == tag);
	device_unlock(device);
	return count;
}

int vs_lun_count(vs_device *device, uint32_t target, uint32_t lun, vs_lun_counters *counters)
{
	memset(counters, 0, sizeof(*counters));
	if (target >= MAX_TARGETS)
		return -ENOENT;
	device_lock(device);
	struct lun **slot = lun_slot(device, target, lun, false);
	int error = slot && *slot ? 0 : -ENOENT;
	for (uint32_t i = 0; !error && i < device->loop_count; i++) {
		const vs_lun_counters *of = &(*slot)->counts[i].counters;

		counters->reads += of->reads;
		counters->writes += of->writes;
		counters->bytes_read += of->bytes_read;
		counters->bytes_written += of->bytes_written;
	}
	device_unlock(device);
	return error;
}

static unsigned fetch_everything(void *argument)
{
	struct loop *loop = argument;

	for (uint32_t i = 0; i < loop->ring_count; i++) {
		struct vring *ring = loop->rings[i];

		if (!vring_active(ring) || ring->index < 2)
			continue;
		scsi_serve(ring, ring->size);
		ring->notify_on = false; /* the loop asks for kicks anew, from where the driver's next chain will be */
		if (!ring->broken)
			vring_publish(ring);
	}
	io_submit(loop);
	return 0;
}

int vs_device_fetch_all(vs_device *device)
{
	for (uint32_t i = 0; i < device->loop_count; i++) {
		loop_lock(&device->loops[i]);
		loop_guarded(&device->loops[i], fetch_everything, &device->loops[i]);
		loop_wake(&device->loops[i]);
		loop_unlock(&device->loops[i]);
	}
	return 0;
}
