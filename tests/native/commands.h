/*
 * commands.h - CDBs as SBC-4 prints them, a disk for the driver's device, and one command from chain to answer.
 */
#ifndef TESTS_NATIVE_COMMANDS_H
#define TESTS_NATIVE_COMMANDS_H

#include "driver.h"

/* Where the disk's bytes lie. */
enum medium { ON_MEMORY, ON_TMPFS, ON_DISK, ON_DISK_DIRECT, ON_NULL };

enum { DISK_BLOCKS = 16384, DISK_LENGTH = DISK_BLOCKS * BLOCK };

struct cdb {
	uint8_t bytes[32];
};

struct cdb read_6(uint32_t lba, uint8_t blocks);
struct cdb read_10(uint32_t lba, uint16_t blocks);
struct cdb read_12(uint32_t lba, uint32_t blocks);
struct cdb read_16(uint64_t lba, uint32_t blocks);
struct cdb write_6(uint32_t lba, uint8_t blocks);
struct cdb write_10(uint32_t lba, uint16_t blocks);
struct cdb write_16(uint64_t lba, uint32_t blocks);
struct cdb synchronize_cache_10(void);
struct cdb write_same_16(uint64_t lba, uint32_t blocks, bool unmap, bool ndob);
struct cdb unmap_10(uint16_t list_length);
struct cdb test_unit_ready(void);

uint64_t entry_of(uint32_t state, uint32_t layer, uint64_t offset);
/* A volume whose one run covers a new file of this kind, filled with `pattern` bytes; gives the file's descriptor too. */
vs_volume *new_volume(enum medium medium, uint64_t length, int *fd);
/* The byte of the pattern at this offset: differs between neighbours, blocks and pages. */
uint8_t pattern(uint64_t offset);

vs_lun_settings open_lun(void);
/* A driver with LUN 0 of target 0 on such a volume, gate open, and all fast rows. */
struct driver *driver_with_disk(enum medium medium, struct setup setup);
/* The same LUN behind another device. */
void put_disk(struct driver *driver);

struct answer {
	bool used;       /* the chain came back through the used ring */
	uint32_t length; /* as the used element says */
	struct virtio_scsi_cmd_resp response;
	bool slow; /* it went to Python instead: */
	vs_notice notice;
};

/* Writes a header for `cdb` to LUN 0 into guest memory and answers where. */
uint64_t new_header(struct driver *driver, struct cdb cdb, uint64_t tag);
/* An unanswered response in guest memory. */
uint64_t new_response(struct driver *driver);
/* Offers header + data-out + response + data-in, runs the device, and says what became of it. */
struct answer command(struct driver *driver, struct cdb cdb, const struct buffer *out, uint32_t outs,
		      const struct buffer *in, uint32_t ins);
struct answer command_on(struct driver *driver, uint32_t ring, struct cdb cdb, const struct buffer *out, uint32_t outs,
			 const struct buffer *in, uint32_t ins);
/* A data buffer in region 0. */
struct buffer data_in(struct driver *driver, uint32_t length);
struct buffer data_out(struct driver *driver, uint32_t length, uint8_t seed);

/* These bytes are those of the pattern from `offset` on. */
void assert_pattern(const uint8_t *bytes, uint64_t offset, uint32_t length);
/* GOOD from the fast path, with `length` bytes in the used element. */
void assert_good(struct answer answer, uint32_t length);
/* Left to Python, nothing on the used ring. */
void assert_slow(struct answer answer);

#endif
