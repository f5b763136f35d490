/*
 * ring.c - a fuzzer of the data plane as a hostile guest and front-end see it (libFuzzer, ASan, UBSan).
 *
 * The input is a program of small steps for one device without threads. Some build honest chains, so that the deep paths
 * are reached at all; some spoil a word of a descriptor, a table, a ring or a header; some change the device under load
 * (rings stopped and started, memory added, removed and cut short, features, log); some play Python and answer.
 *
 *     guest memory    0x00000  rings: 4 KiB each: descriptors, avail (+0x800), used (+0xc00)
 *                     0x08000  indirect tables      0x0a000  headers      0x0c000  responses
 *     (two regions    0x10000  data: region 1, adjoins region 0 in guest addresses only
 *      of 64 KiB)
 *
 * What must hold, besides no memory error and no leak: the disk's file keeps its length, and after all is answered nothing
 * is in flight and the guest's memory can be taken away.
 */
#define _GNU_SOURCE
#include "../../vstore/dataplane/dataplane.h"

#include <linux/virtio_ring.h>
#include <linux/virtio_scsi.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

unsigned vs_device_step(vs_device *device);

#define COUNT(array)     (sizeof(array) / sizeof((array)[0]))
#define CHECK(condition) ((condition) ? (void)0 : abort())

enum {
	RINGS = 4,
	RING_SIZE = 16,
	REGIONS = 2,
	REGION = 0x10000,
	TABLES = 0x8000,
	HEADERS = 0xa000,
	RESPONSES = 0xc000,
	SLOTS = 16,
	DISK = 1 << 20,
	LOG = 16,
	WAITING = 64,
	MOST_STEPS = 400
};

struct input {
	const uint8_t *at, *end;
};

struct world {
	vs_device *device;
	vs_notice waiting[WAITING];
	uint32_t waiting_count;
	uint16_t next_desc[RINGS];
	bool present[REGIONS];
	struct input *input;
};

static int memory_fd[REGIONS], disk_fd, log_fd, event_fd;
static uint8_t *memory[REGIONS];

static uint64_t take(struct input *input, unsigned width)
{
	uint64_t value = 0;

	while (width-- && input->at < input->end)
		value = value << 8 | *input->at++;
	return value;
}

static uint64_t user_of(uint32_t region)
{
	return 0x7f0000000000ull - region * 0x1000000ull;
}

/* ---- guest memory ---- */

static void *host(uint64_t guest)
{
	return memory[guest / REGION % REGIONS] + guest % REGION;
}

static struct vring_desc *desc_of(uint32_t ring)
{
	return host(ring * 0x1000);
}

static struct vring_avail *avail_of(uint32_t ring)
{
	return host(ring * 0x1000 + 0x800);
}

/* An address that is interesting: inside, about the end of a region, or anything. */
static uint64_t some_address(struct input *input)
{
	switch (take(input, 1) % 4) {
	case 0: return take(input, 2);
	case 1: return REGION + take(input, 2);
	case 2: return (take(input, 1) % (REGIONS + 1)) * REGION - take(input, 1);
	default: return take(input, 8);
	}
}

/* ---- what a guest does ---- */

static void offer(uint32_t ring, uint16_t head)
{
	struct vring_avail *avail = avail_of(ring);

	avail->ring[avail->idx % RING_SIZE] = head;
	avail->idx++;
}

/* An honest command: header, data of a length that its CDB asks for, response; straight or through a table. */
static void honest(struct world *world)
{
	struct input *input = world->input;
	uint32_t ring = (uint32_t)take(input, 1) % RINGS, slot = (uint32_t)take(input, 1) % SLOTS;
	uint8_t shape = (uint8_t)take(input, 1), blocks = (uint8_t)(take(input, 1) % 16);
	static const uint8_t opcodes[] = { 0x28, 0x2a, 0x88, 0x8a, 0x35, 0x93, 0x42, 0x12 };
	struct virtio_scsi_cmd_req *header = host(HEADERS + slot * 64);
	uint8_t opcode = opcodes[shape % COUNT(opcodes)];
	bool write = opcode == 0x2a || opcode == 0x8a, read = opcode == 0x28 || opcode == 0x88, list = opcode == 0x42;
	struct vring_desc entries[3];
	uint32_t count = 0;

	*header = (struct virtio_scsi_cmd_req){ .lun = { 1, 0, 0x40, 0 }, .tag = slot, .cdb = { opcode } };
	header->cdb[5] = (uint8_t)take(input, 1);
	header->cdb[opcode == 0x88 || opcode == 0x8a || opcode == 0x93 ? 13 : 8] = list ? 24 : blocks;
	entries[count++] = (struct vring_desc){ HEADERS + slot * 64, sizeof(*header), VRING_DESC_F_NEXT, 1 };
	if (list)
		memcpy(host(REGION + slot * 0x400),
		       "\0\26\0\20\0\0\0\0"
		       "\0\0\0\0\0\0\0\10"
		       "\0\0\0\10\0\0\0",
		       24);
	struct vring_desc data = { REGION + slot * 0x400, list ? 24 : blocks * 512u, VRING_DESC_F_NEXT, 2 };
	if (data.len && (write || list || opcode == 0x93))
		entries[count++] = data;
	entries[count++] = (struct vring_desc){ RESPONSES + slot * 128, sizeof(struct virtio_scsi_cmd_resp),
						VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 2 };
	if (read && data.len) {
		data.flags |= VRING_DESC_F_WRITE;
		entries[count++] = data;
	}
	entries[count - 1].flags &= (uint16_t)~VRING_DESC_F_NEXT;
	bool indirect = shape & 0x80;
	uint16_t head = world->next_desc[ring];
	for (uint32_t i = 0; i < count; i++) {
		uint16_t at = (uint16_t)((head + i) % RING_SIZE);

		entries[i].next = indirect ? (uint16_t)(i + 1) : (uint16_t)((at + 1) % RING_SIZE);
		if (indirect)
			((struct vring_desc *)host(TABLES + slot * 0x100))[i] = entries[i];
		else
			desc_of(ring)[at] = entries[i];
	}
	if (indirect)
		desc_of(ring)[head] =
			(struct vring_desc){ TABLES + slot * 0x100, count * 16, VRING_DESC_F_INDIRECT, 0 };
	world->next_desc[ring] = (uint16_t)((head + (indirect ? 1 : count)) % RING_SIZE);
	offer(ring, head);
}

static void spoil_descriptor(struct world *world)
{
	struct input *input = world->input;
	uint8_t where = (uint8_t)take(input, 1), what = (uint8_t)take(input, 1);
	struct vring_desc *desc = where & 0x80 ? host(TABLES + (where % SLOTS) * 0x100) : desc_of(where % RINGS);

	desc += what % RING_SIZE;
	switch (what >> 6) {
	case 0: desc->addr = some_address(input); break;
	case 1: desc->len = (uint32_t)take(input, take(input, 1) % 5); break;
	case 2: desc->flags = (uint16_t)take(input, 1) % 8; break;
	default: desc->next = (uint16_t)take(input, 1) % (RING_SIZE + 2); break;
	}
}

static void spoil_ring(struct world *world)
{
	struct input *input = world->input;
	struct vring_avail *avail = avail_of((uint32_t)take(input, 1) % RINGS);
	uint8_t what = (uint8_t)take(input, 1);

	switch (what % 4) {
	case 0: avail->idx = (uint16_t)take(input, 2); break;
	case 1: avail->flags = what >> 7; break;
	case 2: avail->ring[RING_SIZE] = (uint16_t)take(input, 2); break; /* used_event */
	default: avail->ring[what / 4 % RING_SIZE] = (uint16_t)take(input, 2);
	}
}

static void poke(struct world *world)
{
	uint64_t at = take(world->input, 3) % (REGIONS * REGION);

	*(uint8_t *)host(at) = (uint8_t)take(world->input, 1);
}

/* ---- what a front-end does ---- */

static void add_region(struct world *world, uint32_t region)
{
	if (!world->present[region])
		world->present[region] =
			!vs_memory_add(world->device, region * REGION, REGION, user_of(region), memory_fd[region], 0);
}

static void remove_region(struct world *world, uint32_t region)
{
	if (world->present[region] && !vs_memory_remove(world->device, region * REGION, REGION, user_of(region)))
		world->present[region] = false;
}

static void start_ring(struct world *world, uint32_t ring)
{
	uint64_t user = user_of(0) + ring * 0x1000;

	vs_vring_set_size(world->device, ring, RING_SIZE);
	vs_vring_set_addresses(world->device, ring, 0, user, user + 0xc00, user + 0x800, 0);
	vs_vring_start(world->device, ring);
	vs_vring_enable(world->device, ring, 1);
}

static void set_up_ring(struct world *world)
{
	struct input *input = world->input;
	uint32_t ring = (uint32_t)take(input, 1) % (RINGS + 1), size = (uint32_t)take(input, 2);
	uint64_t user = user_of(take(input, 1) % REGIONS);

	switch (take(input, 1) % 8) {
	case 0: vs_vring_set_size(world->device, ring, size); break;
	case 1: vs_vring_set_base(world->device, ring, size); break;
	case 2: vs_vring_start(world->device, ring); break;
	case 3: vs_vring_stop(world->device, ring); break;
	case 4: vs_vring_enable(world->device, ring, size & 1); break;
	case 5: vs_vring_break(world->device, ring); break;
	case 6: start_ring(world, ring % RINGS); break;
	default:
		vs_vring_set_addresses(world->device, ring, size & 1, user + some_address(input),
				       user + some_address(input), user + some_address(input), some_address(input));
	}
}

static void change_device(struct world *world)
{
	struct input *input = world->input;
	uint32_t region = (uint32_t)take(input, 1) % REGIONS;
	uint8_t what = (uint8_t)take(input, 1);

	switch (what % 6) {
	case 0: remove_region(world, region); break;
	case 1: add_region(world, region); break;
	case 2: vs_device_set_features(world->device, take(input, 5)); break;
	case 3: vs_device_set_log(world->device, what & 0x80 ? -1 : log_fd, take(input, 1), take(input, 1)); break;
	case 4: vs_device_fetch_all(world->device); break;
	default:
		/* the front-end cuts memory short while the device works on it, and mends it before we look again */
		CHECK(!ftruncate(memory_fd[region], take(input, 1) * 256));
		vs_device_step(world->device);
		CHECK(!ftruncate(memory_fd[region], REGION));
	}
}

/* ---- what Python does ---- */

static void take_notices(struct world *world)
{
	vs_notice notice;

	while (world->waiting_count < WAITING && vs_device_take(world->device, &notice, 1) == 1)
		if (notice.kind == VS_NOTICE_REQUEST)
			world->waiting[world->waiting_count++] = notice;
}

static void answer(struct world *world, uint32_t which, uint32_t response, uint64_t data_in)
{
	const vs_notice notice = world->waiting[which];
	vs_completion completion = { .request = notice.request };
	uint8_t bytes[64] = { 0 };

	vs_request_read(notice.request, data_in, bytes, response % sizeof(bytes));
	vs_request_write(notice.request, response, bytes, data_in % sizeof(bytes));
	completion.response_length = notice.response_room ? response % (notice.response_room + 1) : 0;
	completion.data_in_length = data_in % (notice.data_in + 1);
	world->waiting[which] = world->waiting[--world->waiting_count];
	CHECK(!vs_complete(world->device, &completion, 1));
}

static void python(struct world *world)
{
	struct input *input = world->input;
	struct virtio_scsi_event event = { .event = 1 };

	take_notices(world);
	if (world->waiting_count)
		answer(world, (uint32_t)take(input, 1) % world->waiting_count, (uint32_t)take(input, 1),
		       take(input, 2));
	else
		vs_event_send(world->device, &event, (uint32_t)take(input, 1) % (sizeof(event) + 1));
}

static void change_lun(struct world *world, vs_volume *volume)
{
	uint8_t what = (uint8_t)take(world->input, 1);
	const vs_lun_settings settings = { .block_shift = 9 + what % 4,
					   .gate = what >> 6,
					   .write_through = what >> 5 & 1,
					   .max_transfer = 64,
					   .max_unmap_descriptors = 4,
					   .deallocates = what >> 4 & 1,
					   .blocks = DISK >> (9 + what % 4),
					   .max_write_same = 256 };

	if (what % 16 == 15)
		vs_lun_remove(world->device, 0, 0);
	else
		vs_lun_set(world->device, 0, 0, volume, &settings);
}

/* ---- one run ---- */

static const vs_fast_row fast_rows[] = {
	{ .opcode = 0x28,
	  .kind = VS_READ,
	  .lba_at = 2,
	  .lba_width = 4,
	  .length_at = 7,
	  .length_width = 2,
	  .fua_at = 1,
	  .fua_mask = 8 },
	{ .opcode = 0x2a,
	  .kind = VS_WRITE,
	  .lba_at = 2,
	  .lba_width = 4,
	  .length_at = 7,
	  .length_width = 2,
	  .fua_at = 1,
	  .fua_mask = 8 },
	{ .opcode = 0x88, .kind = VS_READ, .lba_at = 2, .lba_width = 8, .length_at = 10, .length_width = 4 },
	{ .opcode = 0x8a, .kind = VS_WRITE, .lba_at = 2, .lba_width = 8, .length_at = 10, .length_width = 4 },
	{ .opcode = 0x35, .kind = VS_SYNCHRONIZE, .lba_at = 2, .lba_width = 4, .length_at = 7, .length_width = 2 },
	{ .opcode = 0x93,
	  .kind = VS_WRITE_SAME,
	  .lba_at = 2,
	  .lba_width = 8,
	  .length_at = 10,
	  .length_width = 4,
	  .unmap_at = 1,
	  .unmap_mask = 8,
	  .ndob_at = 1,
	  .ndob_mask = 1 },
	{ .opcode = 0x42, .kind = VS_UNMAP, .length_at = 7, .length_width = 2 },
};

static vs_volume *new_volume(uint8_t kind)
{
	vs_volume *volume = vs_volume_new(DISK, 12);
	uint32_t flags = kind % 3 == 0 ? VS_FILE_MEMORY : kind % 3 == 1 ? VS_FILE_INSTANT : VS_FILE_NULL;

	flags |= kind & 0x40 ? VS_FILE_DEFLATE : VS_FILE_ZSTD;
	CHECK(volume && !vs_volume_set_layer(volume, 0, disk_fd, flags, 1));
	CHECK(!vs_volume_set_run(volume, 0, DISK >> 12, (uint64_t)VS_DATA << 60));
	if (kind & 0x80) { /* a map of several runs, some of which are Python's */
		for (uint64_t block = 0; block < 12; block++)
			CHECK(!vs_volume_set_run(volume, 3 * block, 1, block % 7 ? (block % 7) << 60 | block * 8 : 0));
	}
	return volume;
}

static void step(struct world *world, vs_volume *volume)
{
	switch (take(world->input, 1) % 16) {
	case 0:
	case 1:
	case 2:
	case 3: honest(world); break;
	case 4:
	case 5: spoil_descriptor(world); break;
	case 6: spoil_ring(world); break;
	case 7: poke(world); break;
	case 8: set_up_ring(world); break;
	case 9: change_device(world); break;
	case 10:
	case 11: python(world); break;
	case 12: change_lun(world, volume); break;
	default: vs_device_step(world->device);
	}
}

/* Everything is answered and taken down: nothing may be left behind. */
static void end(struct world *world, vs_volume *volume)
{
	vs_vring_counters counters;
	struct stat status;

	for (uint32_t ring = 0; ring < RINGS; ring++)
		vs_vring_stop(world->device, ring);
	do {
		take_notices(world);
		while (world->waiting_count)
			answer(world, 0, 0, 0);
		take_notices(world);
	} while (world->waiting_count);
	for (uint32_t ring = 0; ring < RINGS; ring++) {
		CHECK(vs_vring_in_flight(world->device, ring) == 0);
		CHECK(vs_vring_base(world->device, ring) <= UINT16_MAX);
		CHECK(!vs_vring_count(world->device, ring, &counters));
		CHECK(ring == 1 ||
		      counters.completed <= counters.fetched); /* 1: an event's buffer is not fetched ahead */
	}
	for (uint32_t region = 0; region < REGIONS; region++) {
		remove_region(world, region);
		CHECK(!world->present[region]);
	}
	vs_device_free(world->device);
	vs_volume_release(volume);
	CHECK(!fstat(disk_fd, &status) && status.st_size == DISK);
}

static int shared_file(const char *name, off_t length)
{
	int fd = memfd_create(name, MFD_CLOEXEC);

	CHECK(fd >= 0 && !ftruncate(fd, length));
	return fd;
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	for (uint32_t region = 0; region < REGIONS; region++) {
		memory_fd[region] = shared_file("guest", REGION);
		memory[region] = mmap(NULL, REGION, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd[region], 0);
		CHECK(memory[region] != MAP_FAILED);
	}
	disk_fd = shared_file("disk", DISK);
	log_fd = shared_file("log", LOG);
	event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = { data, data + size };
	struct world world = { .input = &input };
	const vs_settings settings = { .vrings = RINGS };
	uint8_t kind = (uint8_t)take(&input, 1);
	vs_volume *volume = new_volume(kind);
	const vs_lun_settings lun = { .block_shift = 9,
				      .gate = VS_GATE_READ | VS_GATE_WRITE | VS_GATE_FLUSH,
				      .max_transfer = 64,
				      .max_unmap_descriptors = 4,
				      .deallocates = 1,
				      .blocks = DISK >> 9,
				      .max_write_same = 256 };

	for (uint32_t region = 0; region < REGIONS; region++)
		memset(memory[region], 0, REGION);
	world.device = vs_device_new(&settings);
	CHECK(world.device);
	vs_device_set_features(world.device, (uint64_t)(kind >> 2 & 15) << 26);
	vs_device_set_fast_rows(world.device, fast_rows, COUNT(fast_rows));
	CHECK(!vs_lun_set(world.device, 0, 0, volume, &lun));
	for (uint32_t region = 0; region < REGIONS; region++)
		add_region(&world, region);
	for (uint32_t ring = 0; ring < RINGS; ring++) {
		vs_vring_set_kick(world.device, ring, event_fd);
		vs_vring_set_call(world.device, ring, event_fd);
		vs_vring_set_error(world.device, ring, event_fd);
		start_ring(&world, ring);
	}
	for (unsigned steps = 0; input.at < input.end && steps < MOST_STEPS; steps++)
		step(&world, volume);
	end(&world, volume);
	return 0;
}
