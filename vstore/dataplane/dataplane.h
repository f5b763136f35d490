/*
 * dataplane.h - the seam between Python, which decides, and C, which moves bytes.
 *
 *      Python                                   C
 *      ------                                   -
 *      vhost-user messages  -- vs_vring_* ----> rings, guest memory
 *      LogicalUnit          -- vs_lun_* ------> LUN table with one gate per LUN
 *      Disk, formats        -- vs_volume_* ---> block map, files
 *      slow-path tasks     <-- vs_notice ------ whatever the fast path does not serve
 *      answers              -- vs_complete ---> used ring
 *
 * cffi reads the declarations between the two marker comments from this very file, so they keep to
 * what cffi parses: no macros, no includes, plain types. Functions return 0 (or a count) on success and
 * a negative errno on failure. Every function may be called from any Python thread: control calls take the
 * loop threads' locks, so a ring never sees half a change. None of them waits for I/O except vs_volume_*,
 * which are the blocking calls of the slow path and of jobs.
 */
#ifndef VSTORE_DATAPLANE_H
#define VSTORE_DATAPLANE_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */

enum {
	VS_MAX_VRINGS = 66, /* control, event, 64 request queues */
	VS_MAX_REGIONS = 509,
	VS_MAX_VRING_SIZE = 32768, /* virtio 1.2 2.7: queue size is at most 32768 */
	VS_HEADER_BYTES = 64,      /* room for any virtio-scsi request header */
	VS_RESPONSE_BYTES = 108    /* struct virtio_scsi_cmd_resp with 96 bytes of sense */
};

/* ---- volumes: a block map over files --------------------------------------------------- */

typedef struct vs_volume vs_volume;

/* State of a block, bits 63:60 of its 64-bit entry; bits 59:48 say the layer, bits 47:0 the file offset / 512;
 * where COMPRESSED the offset itself, 0 when no single place has the bytes. */
enum { VS_NOT_LOADED = 0, VS_HOLE = 1, VS_ZERO = 2, VS_DATA = 3, VS_SHARED = 4, VS_COMPRESSED = 5, VS_PARTIAL = 6 };

/* How a layer's bytes are reached. */
enum {
	VS_FILE_READ_ONLY = 1,
	VS_FILE_DIRECT = 2,   /* opened with O_DIRECT: aligned I/O only, through io_uring */
	VS_FILE_MEMORY = 4,   /* a memfd of ours: always resident, copied from its mapping */
	VS_FILE_NULL = 8,     /* no file: reads and writes succeed and move nothing */
	VS_FILE_INSTANT = 16, /* tmpfs: plain calls never block, so they are made inline */
	VS_FILE_BLOCK_DEVICE = 32,
	VS_FILE_DEFLATE = 256, /* compressed blocks in it are raw deflate (RFC 1951), */
	VS_FILE_ZSTD = 512     /* or a zstd frame (RFC 8878) */
};

/* block_shift: log2 of the map's block size (9..31). Errors: -EINVAL, -ENOMEM through a NULL result and errno. */
vs_volume *vs_volume_new(uint64_t length, uint32_t block_shift);
/* The last reference closes it: a volume that a LUN still uses lives on until the LUN is removed. */
void vs_volume_release(vs_volume *volume);
/* The descriptor is duplicated. alignment: bytes an O_DIRECT file needs (else 1). */
int vs_volume_set_layer(vs_volume *volume, uint32_t layer, int fd, uint32_t flags, uint32_t alignment);
/* Blocks first .. first+count-1 lie in a row from `entry` on (DATA and SHARED advance their offset block by block). */
int vs_volume_set_run(vs_volume *volume, uint64_t first, uint64_t count, uint64_t entry);
/* The same, an entry for each block; a page of 512 at once. What is refused (-EINVAL: a place or a layer that cannot be;
 * -EBUSY: a write has allocated there) leaves the page as it was. */
int vs_volume_set_entries(vs_volume *volume, uint64_t first, uint64_t count, const uint64_t *entries);
int vs_volume_get_entry(vs_volume *volume, uint64_t block, uint64_t *entry);
/* 1: the first row of NOT_LOADED blocks in this range; 0: none. */
int vs_volume_not_loaded(vs_volume *volume, uint64_t *first, uint64_t *count);
/* What the map may take of memory (16 MiB; -EINVAL below 1 MiB): blocks not looked at for long are NOT_LOADED again. */
int vs_volume_set_map_limit(vs_volume *volume, uint64_t bytes);
/* Keeps to that also where writes have opened pages. Never while another thread loads. */
int vs_volume_trim(vs_volume *volume);
/* All blocks are NOT_LOADED again. -EBUSY: the volume is not quiesced, or changes wait for a commit. */
int vs_volume_forget(vs_volume *volume);
/* What is new is NOT_LOADED. -EBUSY: what would be cut off waits for a commit. */
int vs_volume_resize(vs_volume *volume, uint64_t length);

/* Blocking I/O of any alignment inside the volume's length; 0 or -errno (-EINVAL beyond the end; -ENODATA where
 * the map needs Python: NOT_LOADED, COMPRESSED, PARTIAL, or a write to HOLE, ZERO or SHARED). */
int vs_volume_read(vs_volume *volume, uint64_t offset, void *buffer, uint64_t length);
/* The same over bytes that were composed: what is COMPRESSED is left as it is. */
int vs_volume_read_over(vs_volume *volume, uint64_t offset, void *buffer, uint64_t length);
int vs_volume_write(vs_volume *volume, uint64_t offset, const void *buffer, uint64_t length);
/* Without a volume: `count` blocks in a row, of `size` bytes each. The stream of each, VS_FILE_DEFLATE or VS_FILE_ZSTD as
 * `packing` says, begins at its offset of the file and is not longer than the block. How many, from the first on, could
 * be unpacked; -EINVAL, -ENOMEM. */
int vs_unpack(int fd, uint32_t packing, const uint64_t *offsets, uint32_t count, void *blocks, uint64_t size);
/* From now on it is noted what writes touch, 2^shift bytes a bit; what was noted is forgotten. -EBUSY: not quiesced. */
int vs_volume_track(vs_volume *volume, uint32_t shift);
/* 1: the first range from *offset on that was touched; 0: none; -ENOMEM: some of it could not be noted. Quiesced only. */
int vs_volume_tracked(vs_volume *volume, uint64_t *offset, uint64_t *length);
/* Zeroes a range; with deallocate set, gives its space back where the file can (it reads as zeros either way). */
int vs_volume_zero(vs_volume *volume, uint64_t offset, uint64_t length, int deallocate);
int vs_volume_flush(vs_volume *volume);
/* At `offset` the disk 1: has room on the host; 0: has none, reads as zeros; 2: both; *length is cut to where that may end.
 * -ENODATA: the map needs Python there; -EINVAL: not inside the disk. */
int vs_volume_status(vs_volume *volume, uint64_t offset, uint64_t *length);
/* The errno of a flush after which a layer's writes are not to be trusted, by whoever learnt of it: the kernel tells only
 * one of those who share an open file. 0: none. error, not 0: it is noted, and every flush fails from now on. */
int vs_volume_lost(vs_volume *volume, uint32_t layer, int error);

/* Returns when all I/O that was under way at the call, of loops and of blocking calls, has ended: no one looks any more at
 * places that the map had named before. Frees the tables that were replaced until now. Not from within a call of its own. */
int vs_volume_drain(vs_volume *volume);
/* Writes and zeroes that begin from now on wait (a loop leaves them to the slow path, which waits; vs_volume_replace is
 * -EAGAIN); those under way have ended when it returns. Reads, flushes and commits go on. Calls may be nested. */
int vs_volume_quiesce(vs_volume *volume);
/* -EINVAL: it is not quiesced. */
int vs_volume_resume(vs_volume *volume);
/* The same for a range, and for all but the calling thread; exclusive: nobody else reads there either. Waits for whoever
 * holds a part of it. Nested only inside what the thread holds. -EINVAL: it is not inside the volume; -ENOMEM. */
int vs_volume_hold(vs_volume *volume, uint64_t offset, uint64_t length, int exclusive);
/* Ends it, from the same thread. -EINVAL: it does not hold that range. */
int vs_volume_release_hold(vs_volume *volume, uint64_t offset, uint64_t length);

/* Copy-on-write (allocate.c). A write to a block that is HOLE, ZERO or SHARED takes the next block of the window; what
 * became of it is told by commit_begin, once the caller made it durable commit_end makes it DATA. */
typedef struct {
	uint32_t sub_shift;    /* log2 of the unit that is copied up: at most 512 in a block, 64 when keeps_masks */
	uint32_t keeps_masks;  /* the format keeps two bits a unit (here, zero): what is in the parent stays there */
	uint32_t own_layers;   /* layers from this number on are the parents' */
	uint32_t identity;     /* not 0: new blocks lie in this layer at the guest's own offset, there is no window */
	uint32_t batch_limit;  /* changes at which the notice descriptor becomes readable */
	uint32_t keeps_places; /* a whole block that is zeroed keeps its place, where it is written to again */
	uint64_t zero_entry; /* what a zeroed block becomes: ZERO, HOLE (no parent has anything), 0: it is written to */
} vs_allocation;
int vs_volume_allocates(vs_volume *volume, const vs_allocation *allocation);
/* Room for new blocks, in a row in one layer; zeroed: it reads as zeros now. */
int vs_volume_give(vs_volume *volume, uint32_t layer, uint64_t offset, uint64_t blocks, int zeroed);
/* 1: what is left of the window's first run; 0: nothing is left. */
int vs_volume_take_back(vs_volume *volume, uint32_t *layer, uint64_t *offset, uint64_t *blocks);
/* Readable (eventfd) when the window is half used or the batch is full. */
int vs_volume_notice_fd(vs_volume *volume);
/* Blocks that the next commit will name. */
int vs_volume_pending(vs_volume *volume);
typedef struct {
	uint64_t block, blocks; /* more than one only of ZERO and HOLE; a later change undoes an earlier one */
	uint64_t entry;         /* DATA at its new place, ZERO, HOLE, or PARTIAL with these units: */
	uint64_t allocated, zero;
	uint64_t unused; /* DATA: a place from the window that nothing names after all; 0: none */
} vs_change;
/* All changes since the last commit, filled and ready; -EBUSY: a commit is under way; -E2BIG: there are more than `room`.
 * None may be left behind: rows of zeros come first, however young. *failed: 0, or what kept some from being ready
 * (-ENOBUFS: the window is empty), which are in the next batch. */
int vs_volume_commit_begin(vs_volume *volume, vs_change *changes, uint32_t room, int *failed);
/* committed = 0: it failed, and all of them will be in the next batch. */
int vs_volume_commit_end(vs_volume *volume, int committed);
/* A COMPRESSED block's bytes, all of them (or up to the end of the disk), take a place of their own. -EAGAIN: it is not
 * COMPRESSED any more. One caller at a time. */
int vs_volume_replace(vs_volume *volume, uint64_t block, const void *data, uint64_t length);
/* Blocks left in the window. */
uint64_t vs_volume_window(vs_volume *volume);
/* As vs_volume_set_entries, of blocks of one page, at once or not at all; of each PARTIAL one, in order, there is a row:
 * units `allocated` lie at its entry's place, `zero` ones nowhere, the others are as `beneath` says. shared: that place may
 * not be written to. A place of 0: nothing is allocated. */
typedef struct {
	uint64_t beneath, allocated, zero, shared;
} vs_partial;
int vs_volume_set_partials(vs_volume *volume, uint64_t first, uint64_t count, const uint64_t *entries,
			   const vs_partial *partials);
/* Whole units inside one block that show a COMPRESSED parent get these bytes, if nothing else came first. -ENOBUFS. */
int vs_volume_copy_up(vs_volume *volume, uint64_t offset, const void *data, uint64_t length);

/* ---- the device: one virtio-scsi endpoint ----------------------------------------------- */

typedef struct vs_device vs_device;
typedef struct vs_request vs_request;

typedef struct {
	uint32_t vrings;       /* 2 + request queues, 3..VS_MAX_VRINGS */
	uint32_t threads;      /* loop threads; request queue q is served by thread q % threads */
	uint32_t poll_ns;      /* upper bound of adaptive polling; 0: always sleep */
	uint32_t use_io_uring; /* 0: every call is made inline and may block the loop */
} vs_settings;

/* NULL and errno on failure (-EPERM or -ENOSYS: no io_uring here; try again with use_io_uring = 0). */
vs_device *vs_device_new(const vs_settings *settings);
/* Stops the threads; all rings must be idle (see vs_vring_in_flight). */
void vs_device_free(vs_device *device);

/* One row per CDB that the fast path serves; offsets and widths in bytes, big-endian fields. */
enum { VS_READ = 1, VS_WRITE = 2, VS_SYNCHRONIZE = 3, VS_WRITE_SAME = 4, VS_UNMAP = 5 };
typedef struct {
	uint8_t opcode;
	uint8_t kind;
	uint8_t lba_at, lba_width;
	uint8_t length_at, length_width;
	uint16_t length_of_zero; /* what a length of 0 means: READ (6): 256; others: 0 */
	uint8_t fua_at, fua_mask;
	uint8_t unmap_at, unmap_mask; /* WRITE SAME: UNMAP bit */
	uint8_t ndob_at, ndob_mask;   /* WRITE SAME: NDOB bit */
	uint8_t slow_mask[32];        /* any of these bits set in the CDB: the slow path answers */
} vs_fast_row;
int vs_device_set_fast_rows(vs_device *device, const vs_fast_row *rows, uint32_t count);

/* A LUN as the fast path sees it. An address with no LUN, or with its gate shut, goes to the slow path. */
enum { VS_GATE_READ = 1, VS_GATE_WRITE = 2, VS_GATE_FLUSH = 4 }; /* FLUSH: SYNCHRONIZE CACHE */
typedef struct {
	uint32_t block_shift;   /* log2 of the logical block length: 9..12 */
	uint32_t gate;          /* VS_GATE_*: which kinds the fast path may serve now */
	uint32_t write_through; /* WCE = 0: every write is made durable before it completes */
	uint32_t max_transfer;  /* blocks; longer ones go to the slow path */
	uint32_t max_unmap_descriptors;
	uint32_t deallocates;    /* UNMAP and WRITE SAME with UNMAP give space back */
	uint64_t blocks;         /* capacity */
	uint64_t max_write_same; /* blocks */
} vs_lun_settings;
/* Adds or replaces; the volume gains a reference. target 0..255, lun 0..16383. */
int vs_lun_set(vs_device *device, uint32_t target, uint32_t lun, vs_volume *volume, const vs_lun_settings *settings);
/* -EBUSY while commands of it are in flight: shut the gate, wait, try again. */
int vs_lun_remove(vs_device *device, uint32_t target, uint32_t lun);
/* Fast-path commands in flight on this LUN with this tag, or with any tag. */
int vs_lun_in_flight(vs_device *device, uint32_t target, uint32_t lun, uint64_t tag, int any_tag);
/* What the fast path has answered with GOOD since the LUN was added: READ and WRITE commands, and the bytes they moved. */
typedef struct {
	uint64_t reads, writes, bytes_read, bytes_written;
} vs_lun_counters;
/* -ENOENT: there is no such LUN. */
int vs_lun_count(vs_device *device, uint32_t target, uint32_t lun, vs_lun_counters *counters);
/* Fetches every descriptor chain that the guest has made available so far: what came before a TMF is then in flight. */
int vs_device_fetch_all(vs_device *device);

/* ---- guest memory, features, dirty log --------------------------------------------------- */

/* The descriptor is duplicated. -EEXIST: overlaps a region; -EOVERFLOW: wraps; -EFBIG: fd shorter than the region;
 * -ENOSPC: no slot left. */
int vs_memory_add(vs_device *device, uint64_t guest_address, uint64_t size, uint64_t user_address, int fd,
		  uint64_t mmap_offset);
/* -ENOENT: no such region; -EBUSY: a ring is started or has requests in flight that may point into it. */
int vs_memory_remove(vs_device *device, uint64_t guest_address, uint64_t size, uint64_t user_address);
int vs_device_set_features(vs_device *device, uint64_t virtio_features);
/* fd -1 ends logging. -EFBIG: the log does not cover guest memory. */
int vs_device_set_log(vs_device *device, int fd, uint64_t size, uint64_t offset);

/* ---- vrings: index 0 control, 1 event, 2.. request ---------------------------------------- */

int vs_vring_set_size(vs_device *device, uint32_t vring, uint32_t size);
int vs_vring_set_base(vs_device *device, uint32_t vring, uint32_t base);
/* User addresses of the front-end; flags bit 0: log the used ring at guest address `log`. Allowed on a started ring. */
int vs_vring_set_addresses(vs_device *device, uint32_t vring, uint32_t flags, uint64_t desc, uint64_t used,
			   uint64_t avail, uint64_t log);
/* Duplicated; -1: none (a ring without a kick descriptor is polled). */
int vs_vring_set_kick(vs_device *device, uint32_t vring, int fd);
int vs_vring_set_call(vs_device *device, uint32_t vring, int fd);
int vs_vring_set_error(vs_device *device, uint32_t vring, int fd);
/* Rings are fetched from while started, enabled and not broken. start: -EINVAL when size or addresses are unfit. */
int vs_vring_start(vs_device *device, uint32_t vring);
int vs_vring_enable(vs_device *device, uint32_t vring, int enabled);
/* No chain is fetched after this returns. When in_flight is 0 (a VS_NOTICE_IDLE tells) the base is final. */
int vs_vring_stop(vs_device *device, uint32_t vring);
int vs_vring_base(vs_device *device, uint32_t vring);
/* For a request that only Python can see is malformed: nothing more is fetched, the error descriptor is signalled. */
int vs_vring_break(vs_device *device, uint32_t vring);
int vs_vring_in_flight(vs_device *device, uint32_t vring);

/* bytes_*: data-in and -out of commands that ended with GOOD. resumed: chains that another process had fetched. */
typedef struct {
	uint64_t kicks, calls, fetched, completed, slow, batches, bytes_read, bytes_written, resumed;
	uint32_t started, enabled, broken, in_flight;
} vs_vring_counters;
int vs_vring_count(vs_device *device, uint32_t vring, vs_vring_counters *counters);

/* ---- the slow path ------------------------------------------------------------------------ */

/* REQUEST: answer it. IDLE: a stopped ring has nothing left in flight. BROKEN: the ring was broken by what the driver
 * put there. EVENTS: the event queue has buffers again after vs_event_send had found none. */
enum { VS_NOTICE_REQUEST = 1, VS_NOTICE_IDLE = 2, VS_NOTICE_BROKEN = 3, VS_NOTICE_EVENTS = 4 };
typedef struct {
	uint32_t kind;
	uint32_t vring;
	vs_request *request;    /* REQUEST: Python's until vs_complete */
	uint64_t data_out;      /* bytes the driver offers after the header */
	uint64_t data_in;       /* bytes it has room for after the response */
	uint32_t header_length; /* bytes of `header` that the chain had */
	uint32_t response_room; /* writable bytes before data-in that the chain has (at most VS_RESPONSE_BYTES) */
	uint8_t header[VS_HEADER_BYTES]; /* the private copy that C checked too */
} vs_notice;
/* Readable (eventfd) when vs_device_take has something. */
int vs_device_notice_fd(vs_device *device);
int vs_device_take(vs_device *device, vs_notice *notices, uint32_t room);
/* Data-out: bytes offset..offset+length-1; -EINVAL beyond data_out; -EFAULT when guest memory went away. */
int vs_request_read(vs_request *request, uint64_t offset, void *buffer, uint64_t length);
int vs_request_write(vs_request *request, uint64_t offset, const void *buffer, uint64_t length);
/* Writes the response (response_length <= response_room), puts the chain on the used ring with
 * response_length + data_in_length bytes, and interrupts once per call. The request is gone afterwards. -EINVAL: one asked
 * for more than its chain has room for, and is still Python's; all others are done. */
typedef struct {
	vs_request *request;
	uint64_t data_in_length;
	uint32_t response_length;
	uint8_t response[VS_RESPONSE_BYTES];
} vs_completion;
int vs_complete(vs_device *device, const vs_completion *completions, uint32_t count);
/* Puts one event on the event queue: 1 sent, 0 the driver has no buffer there now, -errno. */
int vs_event_send(vs_device *device, const void *event, uint32_t length);

/* cffi: end */

#endif
