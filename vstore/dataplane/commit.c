/*
 * commit.c - batches: which blocks have a new place, told to Python once they are whole, and DATA when it has made the
 * tables durable. A commit that fails leaves its blocks to the next one.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

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
}

static int settle(struct vs_volume *volume, struct fresh *fresh)
{
	int error = 0;

	if (volume->keeps_masks)
		return 0;
	fresh_make_exclusive(volume, fresh);
	pthread_mutex_unlock(&volume->lock);
	error = fresh_fill(volume, fresh);
	pthread_mutex_lock(&volume->lock);
	if (!error)
		memset(fresh->valid, 0xFF, sizeof(fresh->valid));
	fresh_end_exclusive(volume, fresh);
	return error;
}

int vs_volume_commit_begin(vs_volume *volume, vs_change *changes, uint32_t room)
{
	struct fresh *fresh;
	uint32_t count = 0;
	int error = 0;

	pthread_mutex_lock(&volume->lock);
	if (volume->commit_open) {
		pthread_mutex_unlock(&volume->lock);
		return -EBUSY;
	}
	volume->commit_open = true;
	/* what is queued from now on, perhaps for the second time, is the next batch's */
	if (room > volume->batch_count)
		room = volume->batch_count;
	while (!error && count < room && (fresh = next_of_batch(volume))) {
		fresh->committing = true;
		fresh->committing_next = volume->committing;
		volume->committing = fresh;
		error = settle(volume, fresh);
		changes[count++] = (vs_change){ fresh->block, fresh->entry, fresh->valid[0] };
	}
	if (error) {
		requeue(volume);
		volume->commit_open = false;
	}
	pthread_mutex_unlock(&volume->lock);
	return error ? error : (int)count;
}

int vs_volume_commit_end(vs_volume *volume, int committed)
{
	struct fresh *fresh;
	int error = 0;

	pthread_mutex_lock(&volume->lock);
	if (!committed)
		requeue(volume);
	while (committed && (fresh = volume->committing)) {
		volume->committing = fresh->committing_next;
		fresh->committing = false;
		if (fresh->queued || fresh->writers || fresh->pins || fresh->exclusive ||
		    !fresh_all_valid(volume, fresh))
			continue; /* a partial block's record stays */
		error = map_store(volume, fresh->block, fresh->entry);
		if (!error)
			free(fresh);
	}
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

int vs_volume_set_partial(vs_volume *volume, uint64_t block, uint64_t entry, uint64_t old, uint64_t valid)
{
	struct fresh *fresh = volume->keeps_masks ? calloc(1, sizeof(*fresh)) : NULL;

	if (!fresh)
		return volume->keeps_masks ? -ENOMEM : -EINVAL;
	*fresh = (struct fresh){ .block = block, .entry = entry, .old = old, .valid = { valid } };
	pthread_mutex_lock(&volume->lock);
	int error = map_store(volume, block, (uint64_t)STATE_FRESH << 60 | (uint64_t)(uintptr_t)fresh);
	pthread_mutex_unlock(&volume->lock);
	if (error)
		free(fresh);
	return error;
}
