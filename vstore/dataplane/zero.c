/*
 * zero.c - zeros that are a change of the map: whole blocks become ZERO or HOLE, in formats with masks whole units too.
 * No byte is written; what the blocks had is let go by the commit.
 *
 *      block in a record (FRESH) --> the record's bits change               told with the batch
 *      any other ------------------> its entry changes at once, and a run of `zeros` remembers it for the commit
 *
 * A run is older than all that the batch says of its blocks, because a write that comes after it makes a record. So the
 * runs are told first. A place of its own is kept by a record until a commit has told that nothing is left in it: writes
 * that come in between use it again. Where discarded blocks keep their places, the map goes on telling them: ZERO at a place,
 * which the next write takes instead of one of the window.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_AT_ONCE = 1 << 16 }; /* blocks, so that nobody waits long for the lock */

bool zeros_pending(const struct vs_volume *volume)
{
	return volume->zeros || volume->committing_zeros;
}

int zeros_end(const struct vs_volume *volume, uint64_t blocks)
{
	for (const struct zeros *run = volume->zeros; run; run = run->next)
		if (run->first + run->count > blocks)
			return -EBUSY;
	for (const struct zeros *run = volume->committing_zeros; run; run = run->next)
		if (run->first + run->count > blocks)
			return -EBUSY;
	return 0;
}

static void note(struct vs_volume *volume, struct zeros *run)
{
	*volume->zeros_tail = volume->last_zeros = run;
	volume->zeros_tail = &run->next;
	if (++volume->batch_count == volume->allocation.batch_limit)
		poke(volume->notice_fd);
}

/* `count` blocks that the map tells of in one row, none of them FRESH or NOT_LOADED. */
static int zero_row(struct vs_volume *volume, uint64_t first, uint64_t count, uint64_t entry)
{
	uint64_t zero = volume->allocation.zero_entry;
	struct zeros *last = volume->last_zeros, *run = NULL;
	unsigned state = entry_state(entry);
	bool follows = last && last->first + last->count == first;

	if (state == VS_HOLE || state == VS_ZERO)
		return 0;
	if (!follows && !(run = malloc(sizeof(*run))))
		return -ENOMEM;
	if (volume->allocation.keeps_places && state == VS_DATA)
		zero = entry_kept(entry);
	/* an entry without its note would be lost, a note without its entry makes zeros of what is written there later */
	int error = map_store(volume, first, count, zero);
	if (error) {
		free(run);
	} else if (follows) {
		last->count += count;
	} else {
		*run = (struct zeros){ first, count, volume->allocation.zero_entry, NULL };
		note(volume, run);
	}
	return error;
}

/* The record lets go of `units` (all of them, where the format keeps no masks). Waits for those who fill it. */
static int zero_record(struct vs_volume *volume, struct fresh *fresh, uint64_t units, bool wait)
{
	if (fresh->exclusive && !wait)
		return -EAGAIN;
	fresh->pins++;
	while (fresh->exclusive)
		pthread_cond_wait(&volume->settled, &volume->lock);
	fresh->pins--;
	if (fresh->held & ~units && !fresh_place(volume, fresh))
		return -ENOBUFS; /* what is held still has to move */
	if (!volume->allocation.keeps_masks) {
		memset(fresh->valid, 0, sizeof(fresh->valid));
		if (!entry_is_kept(fresh->old))
			fresh->old = volume->allocation.zero_entry;
	} else {
		fresh->valid[0] &= ~units;
		fresh->held &= ~units;
		fresh->zero &= ~units;
		if (entry_state(volume->allocation.zero_entry) == VS_ZERO)
			fresh->zero |= units;
	}
	fresh->zeroed = false;
	fresh_enqueue(volume, fresh);
	return 0;
}

/* Whole blocks from `first` on: how many are done, or an error that the first one met. */
static int64_t zero_blocks(struct vs_volume *volume, uint64_t first, uint64_t count, bool wait)
{
	uint64_t done = 0;
	int error = 0;

	while (done < count && !error) {
		uint64_t in_a_row, entry = map_look_up(volume, first + done, &in_a_row);
		unsigned state = entry_state(entry);

		if (in_a_row > count - done)
			in_a_row = count - done;
		if (state == STATE_FRESH)
			error = zero_record(volume, fresh_of(entry), volume_all_units(volume), wait);
		else if (state == VS_NOT_LOADED || state == VS_PARTIAL) /* it is being loaded */
			error = -ENODATA;
		else
			error = zero_row(volume, first + done, in_a_row, entry);
		done += error ? 0 : in_a_row;
	}
	return done ? (int64_t)done : error;
}

/* The whole units of [within, within + length) in one block, of a format with masks; 0: there is none at `within`. */
static int64_t zero_units(struct vs_volume *volume, uint64_t block, uint64_t within, uint64_t length, bool wait)
{
	uint32_t shift = volume->allocation.sub_shift, first = (uint32_t)(within >> shift);
	uint64_t end = within + length, in_a_row;
	bool last = (block << volume->shift) + end == atomic_load(&volume->length);
	uint32_t count = (uint32_t)((last ? end + (1u << shift) - 1 : end) >> shift) - first;
	int error = 0;

	if (within & ((1u << shift) - 1) || !count)
		return 0;
	uint64_t units = (UINT64_MAX >> (64 - count)) << first, entry = map_look_up(volume, block, &in_a_row);
	struct extent extent = entry_extent(entry, 0, 0);
	uint64_t done = last ? length : (uint64_t)count << shift;
	if (extent.state == VS_NOT_LOADED || extent.state == VS_PARTIAL)
		return -ENODATA;
	if (reads_zero(&extent))
		return (int64_t)done;
	if (extent.state != STATE_FRESH && extent.state != VS_DATA && !allocates_over(volume, &extent))
		return 0;
	if (extent.state == VS_SHARED && !volume->window && extent.layer < volume->allocation.own_layers)
		return -ENOBUFS;
	struct fresh *fresh = extent.state == STATE_FRESH ? fresh_of(entry) : fresh_new(volume, block, entry, &error);
	if (fresh)
		error = zero_record(volume, fresh, units, wait);
	return error ? error : (int64_t)done;
}

int64_t allocate_zero(struct vs_volume *volume, uint64_t offset, uint64_t length, bool wait)
{
	uint64_t size = volume_block_size(volume), within = offset & (size - 1), block = offset >> volume->shift;
	uint64_t count = length >> volume->shift;
	int64_t done;

	if (!volume->allocation.zero_entry)
		return 0;
	pthread_mutex_lock(&volume->lock);
	bool to_end = offset + length == atomic_load(&volume->length);
	if (to_end && length & (size - 1))
		count++;
	if (count > MOST_AT_ONCE) {
		count = MOST_AT_ONCE;
		to_end = false;
	}
	if (!within && count) {
		done = zero_blocks(volume, block, count, wait);
		if (done > 0)
			done = (uint64_t)done == count && to_end ? (int64_t)length : done << volume->shift;
	} else {
		done = volume->allocation.keeps_masks
			       ? zero_units(volume, block, within, length < size - within ? length : size - within,
					    wait)
			       : 0;
	}
	pthread_mutex_unlock(&volume->lock);
	return done;
}

/* Makes a piece that the map cannot zero end where it can again. */
void zero_cut(const struct vs_volume *volume, uint64_t offset, struct extent *extent)
{
	const vs_allocation *allocation = &volume->allocation;
	uint64_t size = 1ull << (allocation->keeps_masks ? allocation->sub_shift : volume->shift);
	uint64_t left = size - (offset & (size - 1));

	if (extent->length > left)
		extent->length = left;
}

/* ---- commits, under the lock ---- */

uint32_t zeros_begin(struct vs_volume *volume, vs_change *changes, uint32_t room)
{
	struct zeros **tail = &volume->committing_zeros;
	uint32_t count = 0;

	while (count < room && volume->zeros) {
		struct zeros *run = volume->zeros;

		volume->zeros = run->next;
		volume->batch_count--;
		run->next = NULL;
		*tail = run;
		tail = &run->next;
		changes[count++] = (vs_change){ .block = run->first, .blocks = run->count, .entry = run->entry };
	}
	if (!volume->zeros)
		volume->zeros_tail = &volume->zeros;
	volume->last_zeros = NULL;
	return count;
}

/* Runs of a commit that failed go back in front: they are the oldest. */
void zeros_done(struct vs_volume *volume, bool committed)
{
	struct zeros *run, *next, **tail = &volume->committing_zeros;

	while (!committed && *tail) {
		tail = &(*tail)->next;
		volume->batch_count++;
	}
	if (!committed && volume->committing_zeros) {
		*tail = volume->zeros;
		if (!volume->zeros)
			volume->zeros_tail = tail;
		volume->zeros = volume->committing_zeros;
	}
	for (run = committed ? volume->committing_zeros : NULL; run; run = next) {
		next = run->next;
		free(run);
	}
	volume->committing_zeros = NULL;
	volume->last_zeros = NULL;
}

void zeros_free(struct vs_volume *volume)
{
	zeros_done(volume, false);
	for (struct zeros *next, *run = volume->zeros; run; run = next) {
		next = run->next;
		free(run);
	}
}
