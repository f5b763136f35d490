/*
 * copy_up.c - what a loop may not do: writes that cover a sub-block only in part, and the filling of what no write has
 * covered. Both read the old place and write the new one while the record is exclusive.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Waits until nobody writes to the sub-blocks that are not valid, and keeps it so. Under the lock. */
void fresh_make_exclusive(struct vs_volume *volume, struct fresh *fresh)
{
	while (fresh->exclusive || fresh->writers)
		pthread_cond_wait(&volume->settled, &volume->lock);
	fresh->exclusive = true;
}

void fresh_end_exclusive(struct vs_volume *volume, struct fresh *fresh)
{
	fresh->exclusive = false;
	pthread_cond_broadcast(&volume->settled);
}

/* Copies [within, within + length) from the old place to the new one, with `data` laid over [from, from + count). */
static int copy_up(struct vs_volume *volume, const struct fresh *fresh, uint64_t within, uint64_t length, uint64_t from,
		   const uint8_t *data, uint64_t count)
{
	struct extent old = entry_extent(fresh->old, within, length), new = entry_extent(fresh->entry, within, length);
	bool zeros = old.state == VS_ZERO || old.state == VS_HOLE;
	void *buffer;
	int error = 0;

	if (zeros && fresh->zeroed && !count)
		return 0;
	if (posix_memalign(&buffer, 4096, length))
		return -ENOMEM;
	memset(buffer, 0, length);
	if (!zeros)
		error = blocking_extent(volume, &old, IO_READ, buffer);
	if (!error) {
		if (count)
			memcpy((uint8_t *)buffer + (from - within), data, count);
		error = blocking_extent(volume, &new, IO_WRITE, buffer);
	}
	free(buffer);
	return error;
}

/* A write of any alignment inside one block, by a thread that may wait. -ENOBUFS: the window is empty. */
int allocate_write(struct vs_volume *volume, uint64_t offset, const uint8_t *data, uint64_t length)
{
	uint64_t block = offset >> volume->shift, within = offset & (volume_block_size(volume) - 1), in_a_row;
	uint64_t mask = (1ull << volume->sub_shift) - 1, start = within & ~mask, end = (within + length + mask) & ~mask;
	int error = 0;

	pthread_mutex_lock(&volume->lock);
	uint64_t entry = map_look_up(volume, block, &in_a_row);
	struct fresh *fresh = entry_state(entry) == VS_DATA ? NULL : fresh_writable(volume, block, entry, &error);
	if (!fresh) {
		pthread_mutex_unlock(&volume->lock);
		return entry_state(entry) == VS_DATA ? -EAGAIN : error;
	}
	fresh->pins++; /* no commit_end() takes the record away while we wait */
	fresh_make_exclusive(volume, fresh);
	fresh_enqueue(volume, fresh);
	bool stale = false; /* somebody made a part valid meanwhile: the caller cuts anew */
	for (uint64_t sub = start >> volume->sub_shift; sub < end >> volume->sub_shift; sub++)
		stale |= fresh_is_valid(fresh, (uint32_t)sub);
	pthread_mutex_unlock(&volume->lock);
	error = stale ? -EAGAIN : copy_up(volume, fresh, start, end - start, within, data, length);
	pthread_mutex_lock(&volume->lock);
	if (!error)
		fresh_make_valid(volume, fresh, start, end - start);
	fresh->pins--;
	fresh_end_exclusive(volume, fresh);
	pthread_mutex_unlock(&volume->lock);
	return error;
}

static int replace(vs_volume *volume, uint64_t block, const void *data, uint64_t length)
{
	uint64_t in_a_row;
	int error = -EAGAIN;

	pthread_mutex_lock(&volume->lock);
	uint64_t entry = map_look_up(volume, block, &in_a_row);
	struct fresh *fresh = NULL;
	if (entry_state(entry) == VS_COMPRESSED && volume->sub_shift && length <= volume_block_size(volume))
		fresh = fresh_new(volume, block, entry, &error);
	if (!fresh) {
		pthread_mutex_unlock(&volume->lock);
		return error;
	}
	fresh->pins++;
	fresh->exclusive = true; /* until then it is read as before: compressed */
	pthread_mutex_unlock(&volume->lock);
	struct extent new = entry_extent(fresh->entry, 0, length);
	error = blocking_extent(volume, &new, IO_WRITE, (uint8_t *)(uintptr_t)data);
	pthread_mutex_lock(&volume->lock);
	if (!error) {
		memset(fresh->valid, 0xFF, sizeof(fresh->valid));
		fresh_enqueue(volume, fresh);
	}
	fresh->pins--;
	fresh_end_exclusive(volume, fresh);
	if (error && !map_store(volume, block, entry))
		free(fresh); /* nobody else had a use for it: its old place is not one that writes go over */
	pthread_mutex_unlock(&volume->lock);
	return error;
}

int vs_volume_replace(vs_volume *volume, uint64_t block, const void *data, uint64_t length)
{
	uint32_t entered = epoch_enter(volume);
	/* the caller may hold what the one who quiesced waits for, so it may not wait here */
	int error = atomic_load(&volume->quiesced) ? -EAGAIN : replace(volume, block, data, length);
	epoch_leave(volume, entered);
	return error;
}

int fresh_fill(struct vs_volume *volume, struct fresh *fresh)
{
	uint32_t subs = volume_units(volume);
	int error = 0;

	for (uint32_t sub = 0, next; sub < subs && !error; sub = next) {
		next = sub + 1;
		if (fresh_is_valid(fresh, sub))
			continue;
		while (next < subs && !fresh_is_valid(fresh, next))
			next++;
		error = copy_up(volume, fresh, (uint64_t)sub << volume->sub_shift,
				(uint64_t)(next - sub) << volume->sub_shift, 0, NULL, 0);
	}
	return error;
}
