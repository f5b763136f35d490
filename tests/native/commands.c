/*
 * commands.c - see commands.h. Field positions are SBC-4's, written down a second time on purpose.
 */
#define _GNU_SOURCE
#include "commands.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void put(uint8_t *at, uint64_t value, unsigned width)
{
	while (width--)
		*at++ = (uint8_t)(value >> (8 * width));
}

static struct cdb media_cdb(uint8_t opcode, unsigned lba_at, unsigned lba_width, uint64_t lba, unsigned length_at,
			    unsigned length_width, uint64_t blocks)
{
	struct cdb cdb = { { opcode } };

	put(cdb.bytes + lba_at, lba, lba_width);
	put(cdb.bytes + length_at, blocks, length_width);
	return cdb;
}

struct cdb read_6(uint32_t lba, uint8_t blocks)
{
	return media_cdb(0x08, 1, 3, lba, 4, 1, blocks);
}

struct cdb read_10(uint32_t lba, uint16_t blocks)
{
	return media_cdb(0x28, 2, 4, lba, 7, 2, blocks);
}

struct cdb read_12(uint32_t lba, uint32_t blocks)
{
	return media_cdb(0xa8, 2, 4, lba, 6, 4, blocks);
}

struct cdb read_16(uint64_t lba, uint32_t blocks)
{
	return media_cdb(0x88, 2, 8, lba, 10, 4, blocks);
}

struct cdb write_6(uint32_t lba, uint8_t blocks)
{
	return media_cdb(0x0a, 1, 3, lba, 4, 1, blocks);
}

struct cdb write_10(uint32_t lba, uint16_t blocks)
{
	return media_cdb(0x2a, 2, 4, lba, 7, 2, blocks);
}

struct cdb write_16(uint64_t lba, uint32_t blocks)
{
	return media_cdb(0x8a, 2, 8, lba, 10, 4, blocks);
}

struct cdb synchronize_cache_10(void)
{
	return media_cdb(0x35, 2, 4, 0, 7, 2, 0);
}

struct cdb write_same_16(uint64_t lba, uint32_t blocks, bool unmap, bool ndob)
{
	struct cdb cdb = media_cdb(0x93, 2, 8, lba, 10, 4, blocks);

	cdb.bytes[1] = (uint8_t)((unmap ? 0x08 : 0) | (ndob ? 0x01 : 0));
	return cdb;
}

struct cdb unmap_10(uint16_t list_length)
{
	struct cdb cdb = { { 0x42 } };

	put(cdb.bytes + 7, list_length, 2);
	return cdb;
}

struct cdb test_unit_ready(void)
{
	return (struct cdb){ { 0x00 } };
}

/* Everything but LBA, length, DPO, FUA, UNMAP, NDOB and GROUP NUMBER is for Python to judge. */
static const vs_fast_row fast_rows[] = {
	{ .opcode = 0x08,
	  .kind = VS_READ,
	  .lba_at = 1,
	  .lba_width = 3,
	  .length_at = 4,
	  .length_width = 1,
	  .length_of_zero = 256,
	  .slow_mask = { 0, 0xe0, 0, 0, 0, 0xff } },
	{ .opcode = 0x28,
	  .kind = VS_READ,
	  .lba_at = 2,
	  .lba_width = 4,
	  .length_at = 7,
	  .length_width = 2,
	  .fua_at = 1,
	  .fua_mask = 0x08,
	  .slow_mask = { 0, 0xe7, 0, 0, 0, 0, 0xe0, 0, 0, 0xff } },
	{ .opcode = 0xa8,
	  .kind = VS_READ,
	  .lba_at = 2,
	  .lba_width = 4,
	  .length_at = 6,
	  .length_width = 4,
	  .fua_at = 1,
	  .fua_mask = 0x08,
	  .slow_mask = { 0, 0xe7, 0, 0, 0, 0, 0, 0, 0, 0, 0xe0, 0xff } },
	{ .opcode = 0x88,
	  .kind = VS_READ,
	  .lba_at = 2,
	  .lba_width = 8,
	  .length_at = 10,
	  .length_width = 4,
	  .fua_at = 1,
	  .fua_mask = 0x08,
	  .slow_mask = { 0, 0xe7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xe0, 0xff } },
	{ .opcode = 0x0a,
	  .kind = VS_WRITE,
	  .lba_at = 1,
	  .lba_width = 3,
	  .length_at = 4,
	  .length_width = 1,
	  .length_of_zero = 256,
	  .slow_mask = { 0, 0xe0, 0, 0, 0, 0xff } },
	{ .opcode = 0x2a,
	  .kind = VS_WRITE,
	  .lba_at = 2,
	  .lba_width = 4,
	  .length_at = 7,
	  .length_width = 2,
	  .fua_at = 1,
	  .fua_mask = 0x08,
	  .slow_mask = { 0, 0xe7, 0, 0, 0, 0, 0xe0, 0, 0, 0xff } },
	{ .opcode = 0x8a,
	  .kind = VS_WRITE,
	  .lba_at = 2,
	  .lba_width = 8,
	  .length_at = 10,
	  .length_width = 4,
	  .fua_at = 1,
	  .fua_mask = 0x08,
	  .slow_mask = { 0, 0xe7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xe0, 0xff } },
	{ .opcode = 0x35,
	  .kind = VS_SYNCHRONIZE,
	  .lba_at = 2,
	  .lba_width = 4,
	  .length_at = 7,
	  .length_width = 2,
	  .slow_mask = { 0, 0xff, 0, 0, 0, 0, 0xe0, 0, 0, 0xff } },
	{ .opcode = 0x93,
	  .kind = VS_WRITE_SAME,
	  .lba_at = 2,
	  .lba_width = 8,
	  .length_at = 10,
	  .length_width = 4,
	  .unmap_at = 1,
	  .unmap_mask = 0x08,
	  .ndob_at = 1,
	  .ndob_mask = 0x01,
	  .slow_mask = { 0, 0xf6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xe0, 0xff } },
	{ .opcode = 0x42,
	  .kind = VS_UNMAP,
	  .length_at = 7,
	  .length_width = 2,
	  .slow_mask = { 0, 0xff, 0, 0, 0, 0, 0xe0, 0, 0, 0xff } },
};

uint64_t entry_of(uint32_t state, uint32_t layer, uint64_t offset)
{
	return (uint64_t)state << 60 | (uint64_t)layer << 48 | offset >> 9;
}

uint8_t pattern(uint64_t offset)
{
	return (uint8_t)(offset * 7 + (offset >> 9) * 13 + (offset >> 12) * 29 + 1);
}

static int new_file(enum medium medium, uint64_t length)
{
	static const char *const folders[] = {
		[ON_TMPFS] = "/dev/shm", [ON_DISK] = "/var/tmp", [ON_DISK_DIRECT] = "/var/tmp"
	};
	uint8_t *bytes = malloc(length);
	int fd;

	assert_non_null(bytes);
	for (uint64_t i = 0; i < length; i++)
		bytes[i] = pattern(i);
	if (medium == ON_MEMORY)
		fd = memfd_create("disk", MFD_CLOEXEC);
	else
		fd = open(folders[medium], O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, bytes, length, 0), length);
	assert_int_equal(fdatasync(fd), 0);
	free(bytes);
	if (medium == ON_DISK_DIRECT)
		assert_int_equal(fcntl(fd, F_SETFL, O_DIRECT), 0);
	return fd;
}

vs_volume *new_volume(enum medium medium, uint64_t length, int *fd)
{
	static const uint32_t flags[] = { [ON_MEMORY] = VS_FILE_MEMORY,
					  [ON_TMPFS] = VS_FILE_INSTANT,
					  [ON_DISK] = 0,
					  [ON_DISK_DIRECT] = VS_FILE_DIRECT,
					  [ON_NULL] = VS_FILE_NULL };
	vs_volume *volume = vs_volume_new(length, 16);
	uint32_t alignment = medium == ON_DISK_DIRECT ? PAGE : 1;

	assert_non_null(volume);
	*fd = medium == ON_NULL ? -1 : new_file(medium, length);
	assert_int_equal(vs_volume_set_layer(volume, 0, *fd, flags[medium], alignment), 0);
	assert_int_equal(vs_volume_set_run(volume, 0, (length + 65535) >> 16, entry_of(VS_DATA, 0, 0)), 0);
	return volume;
}

vs_lun_settings open_lun(void)
{
	return (vs_lun_settings){ .block_shift = 9,
				  .gate = VS_GATE_READ | VS_GATE_WRITE | VS_GATE_FLUSH,
				  .max_transfer = 8192,
				  .max_unmap_descriptors = 16,
				  .deallocates = 1,
				  .blocks = DISK_BLOCKS,
				  .max_write_same = 65536 };
}

struct driver *driver_with_disk(enum medium medium, struct setup setup)
{
	struct driver *driver = driver_new(setup);

	driver->volume = new_volume(medium, DISK_LENGTH, &driver->disk);
	put_disk(driver);
	return driver;
}

void put_disk(struct driver *driver)
{
	const vs_lun_settings settings = open_lun();

	assert_int_equal(vs_device_set_fast_rows(driver->device, fast_rows, COUNT(fast_rows)), 0);
	assert_int_equal(vs_lun_set(driver->device, 0, 0, driver->volume, &settings), 0);
}

uint64_t new_header(struct driver *driver, struct cdb cdb, uint64_t tag)
{
	struct virtio_scsi_cmd_req header = { .lun = { 1, 0, 0x40, 0 }, .tag = tag };
	uint64_t at = driver_allocate(driver, 0, sizeof(header), 8);

	memcpy(header.cdb, cdb.bytes, sizeof(header.cdb));
	driver_write(driver, at, &header, sizeof(header));
	return at;
}

uint64_t new_response(struct driver *driver)
{
	struct virtio_scsi_cmd_resp response;
	uint64_t at = driver_allocate(driver, 0, sizeof(response), 8);

	memset(&response, 0xee, sizeof(response));
	driver_write(driver, at, &response, sizeof(response));
	return at;
}

struct answer command_on(struct driver *driver, uint32_t ring, struct cdb cdb, const struct buffer *out, uint32_t outs,
			 const struct buffer *in, uint32_t ins)
{
	uint64_t header = new_header(driver, cdb, 1), response = new_response(driver);
	struct buffer buffers[MOST_BUFFERS] = { { header, sizeof(struct virtio_scsi_cmd_req), false } };
	struct answer answer = { 0 };
	struct vring_used_elem element;
	uint32_t count = 1;

	assert_true(outs + ins + 2 <= MOST_BUFFERS);
	for (uint32_t i = 0; i < outs; i++)
		buffers[count++] = out[i];
	buffers[count++] = (struct buffer){ response, sizeof(struct virtio_scsi_cmd_resp), true };
	for (uint32_t i = 0; i < ins; i++)
		buffers[count++] = in[i];
	uint16_t head = driver_chain(driver, ring, buffers, count);
	driver_offer(driver, ring, head);
	driver_run(driver);
	answer.slow = driver_notice(driver, &answer.notice);
	if (!answer.slow && driver->setup.io_uring)
		driver_wait(driver, ring);
	if (driver_used(driver, ring, &element)) {
		assert_int_equal(element.id, head);
		answer.used = true;
		answer.length = element.len;
	}
	driver_read(driver, response, &answer.response, sizeof(answer.response));
	return answer;
}

struct answer command(struct driver *driver, struct cdb cdb, const struct buffer *out, uint32_t outs,
		      const struct buffer *in, uint32_t ins)
{
	return command_on(driver, REQUEST, cdb, out, outs, in, ins);
}

struct buffer data_in(struct driver *driver, uint32_t length)
{
	uint64_t guest = driver_allocate(driver, 0, length, PAGE);

	memset(driver_host(driver, guest), 0xaa, length);
	return (struct buffer){ guest, length, true };
}

struct buffer data_out(struct driver *driver, uint32_t length, uint8_t seed)
{
	uint64_t guest = driver_allocate(driver, 0, length, PAGE);
	uint8_t *bytes = driver_host(driver, guest);

	for (uint32_t i = 0; i < length; i++)
		bytes[i] = (uint8_t)(seed + i * 11 + (i >> 9));
	return (struct buffer){ guest, length, false };
}

void assert_pattern(const uint8_t *bytes, uint64_t offset, uint32_t length)
{
	for (uint32_t i = 0; i < length; i++)
		if (bytes[i] != pattern(offset + i))
			fail_msg("byte %u is %02x, not %02x", i, bytes[i], pattern(offset + i));
}

void assert_good(struct answer answer, uint32_t length)
{
	assert_false(answer.slow);
	assert_true(answer.used);
	assert_int_equal(answer.response.response, VIRTIO_SCSI_S_OK);
	assert_int_equal(answer.response.status, 0);
	assert_int_equal(answer.response.sense_len, 0);
	assert_int_equal(answer.response.resid, 0);
	assert_int_equal(answer.length, length);
}

void assert_slow(struct answer answer)
{
	assert_true(answer.slow);
	assert_int_equal(answer.notice.kind, VS_NOTICE_REQUEST);
	assert_false(answer.used);
}
