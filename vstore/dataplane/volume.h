/*
 * volume.h - what the C files of a volume share: the block map (volume.c), its files (layer.c), copy-on-write
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
	uint64_t length;
	_Atomic uint64_t *scanned;   /* a bit a window of pages: mincore() was asked */
	_Atomic uint64_t resident[]; /* a bit a page: a copy from the mapping will not wait for a disk */
};

struct layer {
	int fd;
	uint32_t flags, alignment;
	struct mapping *_Atomic mapping; /* NULL: no copying from memory here */
	_Atomic bool no_nowait;          /* RWF_NOWAIT refused for writes */
	_Atomic int lost;                /* -errno of a flush that failed: see layer_synced() */
};

struct extent {
	uint32_t state, layer;
	uint64_t offset, length; /* in the layer's file; bytes */
};

/* A block that lives partly or wholly in a place that no table on disk names yet: see allocate.c. */
enum { STATE_FRESH = 7, MOST_SUBS = 512 };
struct fresh {
	uint64_t block, old, entry;
	uint32_t writers; /* I/O under way into sub-blocks that are not valid yet */
	uint32_t pins;    /* threads that wait to be exclusive, or are */
	bool exclusive, queued, committing, zeroed;
	struct fresh *next, *committing_next;
	uint64_t valid[MOST_SUBS / 64];
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
	struct layer *layers[1 << 12];
	pthread_cond_t settled;
	uint32_t sub_shift; /* 0: nothing is allocated here */
	bool keeps_masks, commit_open;
	struct window *window, **window_tail;
	uint64_t window_blocks, window_low;
	struct fresh *batch, **batch_tail, *committing;
	uint32_t batch_count, batch_limit;
	int notice_fd;
	struct retired *retired; /* readers may still look at these: freed by the next drain */
	uint32_t retired_count;
	pthread_mutex_t draining; /* taken before `lock` */
	_Atomic uint32_t quiesced;
	_Atomic uint64_t epoch, under_way[2]; /* see epoch.c */
};

static inline bool reads_zero(const struct extent *extent)
{
	return extent->state == VS_ZERO || extent->state == VS_HOLE;
}

/* The longest piece at `offset`, at most `length` bytes, that lies in a row: the only place that cuts. */
struct extent volume_extent(struct vs_volume *volume, uint64_t offset, uint64_t length);
uint64_t map_look_up(struct vs_volume *volume, uint64_t block, uint64_t *in_a_row);
int map_store(struct vs_volume *volume, uint64_t block, uint64_t entry); /* under volume->lock */
unsigned entry_state(uint64_t entry);
struct extent entry_extent(uint64_t entry, uint64_t within, uint64_t length);

/* allocate.c */
struct extent allocate_extent(struct vs_volume *volume, uint64_t offset, uint64_t length);
/* Leave to write [offset, offset + length) or less, as *extent says. *claim, when there is one, ends with allocate_done().
 * -EAGAIN, -ENOBUFS: only a thread that may wait can do it. */
int allocate_claim(struct vs_volume *volume, uint64_t offset, uint64_t length, struct extent *extent,
		   struct fresh **claim);
void allocate_done(struct vs_volume *volume, struct fresh *claim, uint64_t offset, uint64_t length, bool written);
int allocate_end(struct vs_volume *volume, uint64_t blocks);
int allocate_write(struct vs_volume *volume, uint64_t offset, const uint8_t *data, uint64_t length);

static inline uint64_t volume_block_size(const struct vs_volume *volume)
{
	return 1ull << volume->shift;
}

static inline uint32_t volume_units(const struct vs_volume *volume)
{
	return 1u << (volume->shift - volume->sub_shift);
}

static inline bool fresh_is_valid(const struct fresh *fresh, uint32_t sub)
{
	return fresh->valid[sub / 64] >> (sub % 64) & 1;
}

/* All under volume->lock. */
void fresh_enqueue(struct vs_volume *volume, struct fresh *fresh);
void fresh_make_valid(struct vs_volume *volume, struct fresh *fresh, uint64_t within, uint64_t length);
bool fresh_all_valid(const struct vs_volume *volume, const struct fresh *fresh);
struct fresh *fresh_new(struct vs_volume *volume, uint64_t block, uint64_t entry, int *error);
struct fresh *fresh_writable(struct vs_volume *volume, uint64_t block, uint64_t entry, int *error);

/* copy_up.c */
void fresh_make_exclusive(struct vs_volume *volume, struct fresh *fresh);
void fresh_end_exclusive(struct vs_volume *volume, struct fresh *fresh);
int fresh_fill(struct vs_volume *volume, struct fresh *fresh);

/* window.c */
bool window_take(struct vs_volume *volume, struct fresh *fresh);
void window_free(struct vs_volume *volume);
bool allocates_over(const struct vs_volume *volume, unsigned state);

/* epoch.c: whoever looks at the map without the lock, or follows what it said, is in a loop's turn or between enter and
 * leave. To retire takes the lock. */
uint32_t epoch_enter(struct vs_volume *volume);
/* Waits while the volume is quiesced: not for a thread that the one who resumes may wait for. */
uint32_t epoch_enter_to_write(struct vs_volume *volume);
void epoch_leave(struct vs_volume *volume, uint32_t entered);
void volume_retire(struct vs_volume *volume, void *memory, size_t length); /* length 0: free(), else munmap() */
void retired_free(struct retired *retired);

/* layer.c */
void layer_map(struct vs_volume *volume, struct layer *layer);
void layer_free(struct layer *layer);
int layer_synced(struct layer *layer, int result);
/* Where the file's bytes lie in memory; NULL: not all of them are known to. */
uint8_t *layer_resident(const struct layer *layer, uint64_t offset, uint64_t length);
void layer_note_resident(const struct layer *layer, uint64_t offset, uint64_t length, bool written);
void layer_forget_resident(const struct layer *layer, uint64_t offset, uint64_t length);

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
