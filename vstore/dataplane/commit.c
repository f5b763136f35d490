/*
 * commit.c - batches: which blocks have changed, told to Python once they are whole, and as the map has them for good when
 * it has made the tables durable. A commit that fails leaves its blocks to the next one.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { BREATH = 128 }; /* records handled before the loops may have the lock in between */

static const uint64_t ZERO = (uint64_t)VS_ZERO << 60, HOLE = (uint64_t)VS_HOLE << 60;
static const uint64_t PARTIAL = (uint64_t)VS_PARTIAL << 60, PLACE = (1ull << 60) - 1;

static struct fresh *next_of_batch(struct vs_volume *volume)
{
	struct fresh *fresh = volume->batch;

	if (fresh) {
		volume->batch = fresh->next;
		if (!volume->batch)
			volume->batch_tail = &volume->batch;
		volume->batch_count--;
		fresh->queued = false;
	}
	return fresh;
}

/* Back to the batch: a commit that failed is tried again with the next flush. Under the lock. */
static void requeue(struct vs_volume *volume)
{
	struct fresh *fresh;

	while ((fresh = volume->committing)) {
		volume->committing = fresh->committing_next;
		fresh->committing = false;
		fresh_enqueue(volume, fresh);
	}
	zeros_done(volume, false);
}

static void breathe(struct vs_volume *volume, uint32_t count)
{
	if (count % BREATH)
		return;
	pthread_mutex_unlock(&volume->lock);
	pthread_mutex_lock(&volume->lock);
}

/* Whether nothing of the block is in its own place any more, nor will be. */
static bool place_is_vain(const struct vs_volume *volume, const struct fresh *fresh)
{
	struct extent old = entry_extent(fresh->old, 0, 0);

	if (fresh->writers || !fresh->entry || !fresh_none_valid(volume, fresh))
		return false;
	if (volume->allocation.keeps_masks && volume->allocation.keeps_places && fresh->told)
		return false;
	return volume->allocation.keeps_masks ? !fresh->held : reads_zero(&old);
}

static int fill(struct vs_volume *volume, struct fresh *fresh)
{
	pthread_mutex_unlock(&volume->lock);
	int error = fresh_fill(volume, fresh);
	pthread_mutex_lock(&volume->lock);
	if (error)
		return error;
	if (volume->allocation.keeps_masks) {
		fresh->valid[0] |= fresh->held;
		fresh->held = 0;
	} else {
		memset(fresh->valid, 0xFF, sizeof(fresh->valid));
	}
	return 0;
}

/* Makes a record ready to be told: filled, or without a place. *unused: a place that was never told. */
static int settle(struct vs_volume *volume, struct fresh *fresh, uint64_t *unused)
{
	int error = 0;

	if (!fresh_needs_fill(volume, fresh) && !place_is_vain(volume, fresh))
		return 0;
	fresh_make_exclusive(volume, fresh);
	if (place_is_vain(volume, fresh)) {
		*unused = fresh->told || volume->allocation.identity ? 0 : fresh->entry;
		if (volume->allocation.keeps_places && fresh->told)
			fresh->old = entry_kept(fresh->entry);
		fresh->entry = 0;
		fresh->told = false;
	} else if (fresh->entry || !volume->allocation.keeps_masks || fresh_place(volume, fresh)) {
		error = fill(volume, fresh);
	} else {
		error = -ENOBUFS;
	}
	fresh_end_exclusive(volume, fresh);
	return error;
}

static vs_change told(const struct vs_volume *volume, struct fresh *fresh, uint64_t unused)
{
	vs_change change = { .block = fresh->block, .blocks = 1, .entry = fresh->entry, .unused = unused };
	uint64_t all = volume_all_units(volume);

	fresh->told = fresh->entry;
	if (!volume->allocation.keeps_masks) {
		if (!fresh->entry)
			change.entry = fresh->old;
		return change;
	}
	change.allocated = fresh->valid[0];
	change.zero = fresh->zero;
	if (!fresh->entry && (!fresh->zero || fresh->zero == all))
		change.entry = fresh->zero ? ZERO : HOLE;
	else if (change.allocated != all)
		change.entry = PARTIAL | (fresh->entry & PLACE);
	return change;
}

int vs_volume_commit_begin(vs_volume *volume, vs_change *changes, uint32_t room, int *failed)
{
	struct fresh *fresh;

	*failed = 0;
	pthread_mutex_lock(&volume->lock);
	if (volume->commit_open || room < volume->batch_count) {
		int error = volume->commit_open ? -EBUSY : -E2BIG;
		pthread_mutex_unlock(&volume->lock);
		return error;
	}
	volume->commit_open = true;
	/* what is queued from now on, perhaps for the second time, is the next batch's */
	room = volume->batch_count;
	uint32_t count = zeros_begin(volume, changes, room);
	for (uint32_t taken = count; taken < room && (fresh = next_of_batch(volume)); taken++) {
		uint64_t unused = 0;

		fresh->committing = true;
		fresh->committing_next = volume->committing;
		volume->committing = fresh;
		int error = settle(volume, fresh, &unused);
		if (!error) {
			changes[count++] = told(volume, fresh, unused);
		} else {
			volume->committing = fresh->committing_next;
			fresh->committing = false;
			fresh_enqueue(volume, fresh);
			*failed = !*failed || error == -ENOBUFS ? error : *failed;
		}
		breathe(volume, taken);
	}
	pthread_mutex_unlock(&volume->lock);
	return (int)count;
}

/* The entry that says as much as the record does; 0: none can. */
static uint64_t settled_entry(const struct vs_volume *volume, const struct fresh *fresh)
{
	if (!fresh_idle(fresh))
		return 0;
	if (fresh->entry && fresh_all_valid(volume, fresh))
		return fresh->entry;
	if (fresh->entry)
		return volume->allocation.keeps_masks && fresh->zero == volume_all_units(volume)
			       ? entry_kept(fresh->entry)
			       : 0;
	if (!volume->allocation.keeps_masks || (!fresh->zero && !fresh->held))
		return fresh->old;
	return fresh->zero == volume_all_units(volume) ? ZERO : 0;
}

int vs_volume_commit_end(vs_volume *volume, int committed)
{
	struct fresh *fresh;
	uint32_t count = 0;
	int error = 0;

	pthread_mutex_lock(&volume->lock);
	if (!committed)
		requeue(volume);
	while (committed && (fresh = volume->committing)) {
		volume->committing = fresh->committing_next;
		fresh->committing = false;
		uint64_t entry = settled_entry(volume, fresh);
		if (entry) { /* else a partial block's record stays */
			error = map_store(volume, fresh->block, 1, entry);
			if (!error)
				free(fresh);
		}
		breathe(volume, ++count);
	}
	if (committed)
		zeros_done(volume, true);
	volume->commit_open = false;
	pthread_mutex_unlock(&volume->lock);
	return error;
}

int vs_volume_pending(vs_volume *volume)
{
	pthread_mutex_lock(&volume->lock);
	int count = (int)volume->batch_count;
	pthread_mutex_unlock(&volume->lock);
	return count;
}
