/*
 * hold.c - a range of the disk that only one thread may write to, for commands that read, look, and then write; where
 * those must be seen as one step, nobody else reads there either.
 *
 *     hold:      note the range, drain --> [ reads and writes of the holder ] --> release
 *     others     a blocking write into the range waits; a loop leaves its own to the slow path, which waits
 *                (exclusive: a read too)
 *                what is beside the range, reads and flushes go on
 *
 * Who begins to write looks at `guarded`, one word that is 0 unless somebody holds a range or has quiesced the volume, and
 * only then at the list of ranges, under the lock. It is a quiesce for a range, and right for the same reason: a writer
 * that missed the word was counted when it was set, and the drain waits for it. `exclusive` is the same word for readers.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>

struct hold {
	uint64_t offset, length;
	bool exclusive;
	pthread_t owner;
	struct hold *next;
};

/* A range held that has a byte in common with this one and is in the way of who reads, or writes; what this thread holds
 * is in nobody's way if it `may_own`. */
static bool held(const struct vs_volume *volume, uint64_t offset, uint64_t length, bool reads, bool may_own)
{
	for (const struct hold *hold = volume->holds; hold; hold = hold->next)
		if (offset < hold->offset + hold->length && hold->offset < offset + length &&
		    (hold->exclusive || !reads) && !(may_own && pthread_equal(hold->owner, pthread_self())))
			return true;
	return false;
}

static bool may_write(const struct vs_volume *volume, uint64_t offset, uint64_t length, bool may_own)
{
	return !atomic_load(&volume->quiesced) && !held(volume, offset, length, false, may_own);
}

bool hold_lets_write(struct vs_volume *volume, uint64_t offset, uint64_t length, bool may_own)
{
	pthread_mutex_lock(&volume->lock);
	bool allowed = may_write(volume, offset, length, may_own);
	pthread_mutex_unlock(&volume->lock);
	return allowed;
}

void hold_wait_to_write(struct vs_volume *volume, uint64_t offset, uint64_t length)
{
	pthread_mutex_lock(&volume->lock);
	while (!may_write(volume, offset, length, true))
		pthread_cond_wait(&volume->settled, &volume->lock);
	pthread_mutex_unlock(&volume->lock);
}

bool hold_lets_read(struct vs_volume *volume, uint64_t offset, uint64_t length, bool may_own)
{
	pthread_mutex_lock(&volume->lock);
	bool allowed = !held(volume, offset, length, true, may_own);
	pthread_mutex_unlock(&volume->lock);
	return allowed;
}

void hold_wait_to_read(struct vs_volume *volume, uint64_t offset, uint64_t length)
{
	pthread_mutex_lock(&volume->lock);
	while (held(volume, offset, length, true, true))
		pthread_cond_wait(&volume->settled, &volume->lock);
	pthread_mutex_unlock(&volume->lock);
}

int vs_volume_hold(vs_volume *volume, uint64_t offset, uint64_t length, int exclusive)
{
	struct hold *hold = malloc(sizeof(*hold));
	uint64_t end;

	if (!hold || __builtin_add_overflow(offset, length, &end) || end > atomic_load(&volume->length)) {
		int error = hold ? -EINVAL : -ENOMEM;
		free(hold);
		return error;
	}
	pthread_mutex_lock(&volume->lock);
	while (held(volume, offset, length, false, true))
		pthread_cond_wait(&volume->settled, &volume->lock);
	*hold = (struct hold){ offset, length, exclusive != 0, pthread_self(), volume->holds };
	volume->holds = hold;
	atomic_fetch_add(&volume->guarded, 1);
	atomic_fetch_add(&volume->exclusive, hold->exclusive);
	pthread_mutex_unlock(&volume->lock);
	return vs_volume_drain(volume);
}

int vs_volume_release_hold(vs_volume *volume, uint64_t offset, uint64_t length)
{
	struct hold *hold, **at = &volume->holds;

	pthread_mutex_lock(&volume->lock);
	while (*at &&
	       !((*at)->offset == offset && (*at)->length == length && pthread_equal((*at)->owner, pthread_self())))
		at = &(*at)->next;
	hold = *at;
	if (hold) {
		*at = hold->next;
		atomic_fetch_sub(&volume->guarded, 1);
		atomic_fetch_sub(&volume->exclusive, hold->exclusive);
		pthread_cond_broadcast(&volume->settled);
	}
	pthread_mutex_unlock(&volume->lock);
	free(hold);
	return hold ? 0 : -EINVAL;
}
