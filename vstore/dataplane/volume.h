/*
 * volume.h - what the C files of a volume share: the block map (map.c, load.c), its files (volume.c, layer.c), copy-on-write
 * (allocate.c, copy_up.c, commit.c, window.c), and the calls that wait (blocking.c).
 *
 * Locking: readers of the map take no lock. Whoever changes it, a layer or a record holds volume->lock.
 */
#ifndef VSTORE_VOLUME_H
#define VSTORE_VOLUME_H

#include "dataplane.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/uio.h>

/* A file in memory. It never changes: a file of another length gets another one, and readers keep the one that they met. */
struct mapping {
	uint8_t *bytes;
	uint64_t length;           /* may go far beyond the end of a file that grows, so that it is mapped once */
	_Atomic uint64_t file_end; /* the file had at least this length: writes through the mapping end here */
	_Atomic uint64_t
		*resident; /* a bit a page: a copy from the mapping will not wait for a disk; a mapping itself */
	size_t resident_length;
	_Atomic uint32_t chunks; /* pages of `resident` in use, a bit each in `touched` */
	_Atomic uint64_t *touched;
	_Atomic uint64_t scanned[]; /* a bit a window of pages: mincore() was asked */
};

struct layer {
	int fd;
	uint32_t flags, alignment;
	struct mapping *_Atomic mapping; /* NULL: no copying from memory here */
	_Atomic bool no_nowait;          /* RWF_NOWAIT refused for writes */
	_Atomic bool grows;              /* blocks are allocated at its end */
	bool local;                      /* a file system on a disk of this host */
	_Atomic uint64_t slow_until;     /* ns, CLOCK_MONOTONIC: until then plain writes may wait */
	_Atomic int lost;                /* -errno of a flush that failed: see layer_synced() */
};

/* A map entry, as dataplane.h has it. */
enum { PAGE_ENTRIES = 512, STATE_SHIFT = 60, LAYER_SHIFT = 48, LAYER_MASK = 0xFFF, SECTOR_SHIFT = 9 };
#define OFFSET_MASK ((1ull << LAYER_SHIFT) - 1)

struct extent {
	uint32_t state, layer;
	uint64_t offset, length; /* in the layer's file; bytes */
};

/* What has become of a block that may not simply be overwritten, or is zeroed, since the tables on disk told of it: see
 * allocate.c. `zero`, `held`: one bit a unit, for formats that keep masks. */
enum { STATE_FRESH = 7, MOST_SUBS = 512 };
struct fresh {
	uint64_t entry; /* DATA at its own place; 0: it has none */
	uint64_t zero, held;
	uint32_t writers; /* I/O under way into units that are not valid yet */
	uint32_t pins;    /* threads that wait to be exclusive, or are */
	bool exclusive, queued, committing;
	bool zeroed; /* its own place reads as zeros where nothing was written */
	bool told;   /* its own place was named to the format */
	uint64_t block;
	struct fresh *next;
	uint64_t valid[MOST_SUBS / 64]; /* units that lie in its own place; what few writes look at stands behind it */
	uint64_t old;                   /* what shows through where no bit says otherwise */
	uint64_t lent; /* SHARED: where the `held` units lie, a place of this image that a snapshot uses too */
	struct fresh *committing_next;
};

/* Blocks that have no record, and were zeroed: the map says so already, the tables will. */
struct zeros {
	uint64_t first, count, entry;
	struct zeros *next;
};

struct retired {
	struct retired *next;
	void *memory;
	size_t length; /* 0: free(), else munmap() */
};

struct vs_volume {
	_Atomic uint32_t references;
	_Atomic uint64_t length;
	uint32_t shift;
	pthread_mutex_t lock;            /* writers of the map and of the layer table */
	_Atomic uint64_t whole;          /* not 0: every block lies in one run that starts with this entry */
	_Atomic uint64_t *_Atomic pages; /* 0 not loaded; a state: one run; else the address of 512 entries */
	uint64_t page_count;
	struct page **held, *newest; /* pages of entries; the one that was made last */
	uint64_t held_count, held_room, hand, records, map_limit;
	struct layer *layers[1 << 12];
	pthread_cond_t settled;
	vs_allocation allocation; /* sub_shift 0: nothing is allocated here */
	bool commit_open;
	struct window *window, **window_tail;
	uint64_t window_blocks, window_low;
	struct fresh *batch, **batch_tail, *committing;
	struct zeros *zeros, **zeros_tail,
		*committing_zeros; /* these are older than what the batch says of their blocks */
	struct zeros *last_zeros;
	uint32_t batch_count;
	int notice_fd;
	struct retired *retired; /* readers may still look at these: freed by the next drain */
	uint32_t retired_count;
	pthread_mutex_t draining; /* taken before `lock` */
	_Atomic uint32_t quiesced;
	_Atomic uint32_t guarded;   /* quiesced + held ranges: 0 is leave to write anywhere */
	_Atomic uint32_t exclusive; /* ranges held against readers too: 0 is leave to read anywhere */
	struct hold *holds;
	bool mapped;                          /* loops have met it, and only they copy from mappings */
	_Atomic uint64_t epoch, under_way[2]; /* see epoch.c */
	struct packed **packed;               /* unpacked blocks that are kept; under packed_lock */
	pthread_mutex_t packed_lock;
	struct track *_Atomic track; /* NULL: nobody asks what writes touch */
};

/* packed.c: the bytes of the whole block that a COMPRESSED extent is of, until released. NULL: Python has to make them. */
struct packed *packed_hold(struct vs_volume *volume, const struct extent *extent, bool may_wait);
uint8_t *packed_bytes(struct packed *block);
void packed_release(struct packed *block);
void packed_forget(struct vs_volume *volume);

void track_free(struct track *track);
void track_range(struct track *track, uint64_t offset, uint64_t length);

/* For every write, zeroing and discarding, once it has leave to begin. */
static inline void volume_note(struct vs_volume *volume, uint64_t offset, uint64_t length)
{
	struct track *track = atomic_load_explicit(&volume->track, memory_order_acquire);

	if (track)
		track_range(track, offset, length);
}

static inline bool reads_zero(const struct extent *extent)
{
	return extent->state == VS_ZERO || extent->state == VS_HOLE;
}

/* The longest piece at `offset`, at most `length` bytes, that lies in a row: the only place that cuts. */
struct extent volume_extent(struct vs_volume *volume, uint64_t offset, uint64_t length);
uint64_t map_look_up(struct vs_volume *volume, uint64_t block, uint64_t *in_a_row);
unsigned entry_state(uint64_t entry);
bool entry_has_offset(uint64_t entry); /* DATA, SHARED and kept ZERO, which advance from block to block */
/* ZERO with a place of its own, which the next write to it uses. */
bool entry_is_kept(uint64_t entry);
uint64_t entry_kept(uint64_t data);     /* the same place, zeroed */
uint64_t entry_of_kept(uint64_t entry); /* and written to again */
uint64_t volume_blocks(const struct vs_volume *volume);
struct extent entry_extent(uint64_t entry, uint64_t within, uint64_t length);
uint64_t map_blocks(const struct vs_volume *volume, uint64_t length);
uint64_t map_pages(const struct vs_volume *volume, uint64_t length); /* of 512 blocks */
/* All under volume->lock. */
int map_store(struct vs_volume *volume, uint64_t first, uint64_t count, uint64_t entry);
/* At once or not at all. */
int map_set_run(struct vs_volume *volume, uint64_t first, uint64_t count, uint64_t entry);
/* Blocks of one page: at once or not at all. -EBUSY: a write has allocated there. */
int map_set_entries(struct vs_volume *volume, uint64_t first, uint64_t count, const uint64_t *entries);
int map_open_whole(struct vs_volume *volume);
void map_close_whole(struct vs_volume *volume);
int map_forget(struct vs_volume *volume);
/* Drops cold pages while the map takes more memory than its limit. Only for calls that never meet one that loads. */
void map_trim(struct vs_volume *volume, unsigned steps);
uint64_t map_bytes(const struct vs_volume *volume);
void map_free(struct vs_volume *volume);

static inline uint64_t volume_block_size(const struct vs_volume *volume)
{
	return 1ull << volume->shift;
}

static inline uint32_t volume_units(const struct vs_volume *volume)
{
	return 1u << (volume->shift - volume->allocation.sub_shift);
}

/* A bit for each unit of a block, where the format keeps masks. */
static inline uint64_t volume_all_units(const struct vs_volume *volume)
{
	uint32_t units = volume_units(volume);

	return units < 64 ? (1ull << units) - 1 : UINT64_MAX;
}

static inline bool fresh_is_valid(const struct fresh *fresh, uint32_t sub)
{
	return fresh->valid[sub / 64] >> (sub % 64) & 1;
}

static inline struct fresh *fresh_of(uint64_t entry)
{
	return (struct fresh *)(uintptr_t)(entry & ((1ull << 48) - 1));
}

static inline uint64_t fresh_entry(const struct fresh *fresh)
{
	return (uint64_t)STATE_FRESH << 60 | (uint64_t)(uintptr_t)fresh;
}

/* volume.c: a loop is about to meet it. */
void volume_map(struct vs_volume *volume);

/* allocate.c */
struct extent allocate_extent(struct vs_volume *volume, uint64_t offset, uint64_t length);
/* Leave to write [offset, offset + length) or less, as *extent says. *claim, when there is one, ends with allocate_done().
 * -EAGAIN, -ENOBUFS: only a thread that may wait can do it. */
int allocate_claim(struct vs_volume *volume, uint64_t offset, uint64_t length, struct extent *extent,
		   struct fresh **claim);
void allocate_done(struct vs_volume *volume, struct fresh *claim, uint64_t offset, uint64_t length, bool written);
int allocate_end(struct vs_volume *volume, uint64_t blocks);
/* Whether a write to a block like this is made by allocating. */
bool allocates_over(const struct vs_volume *volume, const struct extent *extent);

/* All under volume->lock. */
void fresh_enqueue(struct vs_volume *volume, struct fresh *fresh);
void fresh_make_valid(struct vs_volume *volume, struct fresh *fresh, uint64_t within, uint64_t length);
bool fresh_all_valid(const struct vs_volume *volume, const struct fresh *fresh);
bool fresh_none_valid(const struct vs_volume *volume, const struct fresh *fresh);
/* Nothing waits for it: its page of the map may be dropped, and it with free(). */
bool fresh_idle(const struct fresh *fresh);
struct extent fresh_extent(const struct vs_volume *volume, const struct fresh *fresh, uint64_t within, uint64_t length);
struct fresh *fresh_new(struct vs_volume *volume, uint64_t block, uint64_t entry, int *error);
struct fresh *fresh_writable(struct vs_volume *volume, uint64_t block, uint64_t entry, int *error);
bool fresh_place(struct vs_volume *volume, struct fresh *fresh);

/* copy_up.c */
int allocate_write(struct vs_volume *volume, uint64_t offset, const uint8_t *data, uint64_t length);
void fresh_make_exclusive(struct vs_volume *volume, struct fresh *fresh);
void fresh_end_exclusive(struct vs_volume *volume, struct fresh *fresh);
bool fresh_needs_fill(const struct vs_volume *volume, const struct fresh *fresh);
int fresh_fill(struct vs_volume *volume, struct fresh *fresh);

/* zero.c */
/* Zeroes by a change of the map; the bytes from `offset` on that are done, 0 where the map cannot say it. -EAGAIN (only
 * without `wait`), -ENOBUFS, -ENODATA: a thread that may wait must help. */
int64_t allocate_zero(struct vs_volume *volume, uint64_t offset, uint64_t length, bool wait);
void zero_cut(const struct vs_volume *volume, uint64_t offset, struct extent *extent);
static inline bool volume_zeroes_by_map(const struct vs_volume *volume)
{
	return volume->allocation.zero_entry != 0;
}
/* Whether no page of the map may be dropped: the tables do not tell yet what it does. Under volume->lock. */
bool zeros_pending(const struct vs_volume *volume);
int zeros_end(const struct vs_volume *volume, uint64_t blocks);
uint32_t zeros_begin(struct vs_volume *volume, vs_change *changes, uint32_t room);
void zeros_done(struct vs_volume *volume, bool committed);
void zeros_free(struct vs_volume *volume);

/* window.c */
bool window_take(struct vs_volume *volume, struct fresh *fresh);
void window_give_back(struct vs_volume *volume, const struct fresh *fresh);
void window_free(struct vs_volume *volume);

/* epoch.c: whoever looks at the map without the lock, or follows what it said, is in a loop's turn or between enter and
 * leave. To retire takes the lock. */
uint32_t epoch_enter(struct vs_volume *volume);
/* Waits while the volume is quiesced, or the range held: not for a thread that the one who resumes may wait for. */
uint32_t epoch_enter_to_write(struct vs_volume *volume, uint64_t offset, uint64_t length);
/* Waits while the range is held against readers. */
uint32_t epoch_enter_to_read(struct vs_volume *volume, uint64_t offset, uint64_t length);
void epoch_leave(struct vs_volume *volume, uint32_t entered);
void volume_retire(struct vs_volume *volume, void *memory, size_t length); /* length 0: free(), else munmap() */
void retired_free(struct retired *retired);

/* hold.c: where `guarded` is not 0. Whether a write may begin there now; a loop owns no range, and serves those who do
 * not. The other returns when this thread's may have begun. */
bool hold_lets_write(struct vs_volume *volume, uint64_t offset, uint64_t length, bool may_own);
void hold_wait_to_write(struct vs_volume *volume, uint64_t offset, uint64_t length);
/* The same of a read, where `exclusive` is not 0. */
bool hold_lets_read(struct vs_volume *volume, uint64_t offset, uint64_t length, bool may_own);
void hold_wait_to_read(struct vs_volume *volume, uint64_t offset, uint64_t length);

/* layer.c */
/* Maps the file for copying from memory, and anew when its length is another; a file that cannot be mapped is simply read.
 * Under volume->lock. */
void layer_map(struct vs_volume *volume, struct layer *layer);
/* The file has grown. */
void layer_grown(struct vs_volume *volume, struct layer *layer);
void layer_free(struct layer *layer);
int layer_synced(struct layer *layer, int result);
/* Where the file's bytes lie in memory; NULL: not all of them are known to. */
uint8_t *layer_resident(const struct layer *layer, uint64_t offset, uint64_t length, bool write);
/* Written, or read from a disk. */
void layer_note_resident(const struct layer *layer, uint64_t offset, uint64_t length);
/* Read without waiting: it was in memory, or a hole of tmpfs. */
void layer_note_found(const struct layer *layer, uint64_t offset, uint64_t length);
void layer_forget_resident(const struct layer *layer, uint64_t offset, uint64_t length);
/* Whether a buffered write to it may be a plain call of a loop, which tells if that made it wait. All in ns. */
bool layer_is_quick(const struct layer *layer, uint64_t now);
void layer_was_slow(struct layer *layer, uint64_t now, uint64_t took);

/* blocking.c */
enum { IO_READ = 1, IO_WRITE, IO_FLUSH, IO_PUNCH, IO_ZERO };
/* Blocking, all of it: 0 or -errno. Reads beyond the end of the file give zeros. `iov` is used up. */
int blocking_move(const struct layer *layer, uint32_t operation, struct iovec *iov, uint32_t count, uint64_t offset,
		  bool durable);
/* All of one extent of DATA or SHARED. */
int blocking_extent(struct vs_volume *volume, const struct extent *extent, uint32_t operation, uint8_t *buffer);
/* Punches or zeroes a range of the file; -EOPNOTSUPP where only writing zeros would do. */
int blocking_clear(struct layer *layer, uint32_t operation, uint64_t offset, uint64_t length);
void iovs_advance(struct iovec **iov, uint32_t *count, uint64_t length);

#endif
