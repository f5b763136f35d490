/*
 * load.c - what Python tells of the block map: runs for disks that lie in a row, else pages of entries as they are wanted,
 * each checked whole before any of it counts. And how much of the map is kept.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { STEPS = 128, MOST_RETIRED = 256, LEAST_LIMIT = 1 << 20 };

/* Whether every place that the run names fits the 48 bits of an entry and a layer that exists. */
static bool sane_run(const struct vs_volume *volume, uint64_t count, uint64_t entry)
{
	uint64_t last;

	if (entry_state(entry) > VS_PARTIAL || (entry_state(entry) == VS_NOT_LOADED && entry))
		return false;
	if (!entry_has_offset(entry))
		return true;
	if (!volume->layers[(entry >> LAYER_SHIFT) & LAYER_MASK])
		return false;
	return !__builtin_add_overflow(entry & OFFSET_MASK, (count - 1) << (volume->shift - SECTOR_SHIFT), &last) &&
	       last <= OFFSET_MASK;
}

static bool inside(const struct vs_volume *volume, uint64_t first, uint64_t count)
{
	uint64_t blocks = volume_blocks(volume);

	return count && first <= blocks && count <= blocks - first;
}

int vs_volume_set_run(vs_volume *volume, uint64_t first, uint64_t count, uint64_t entry)
{
	int error = 0;

	pthread_mutex_lock(&volume->lock);
	uint64_t blocks = volume_blocks(volume);
	if (!inside(volume, first, count) || !sane_run(volume, count, entry)) {
		error = -EINVAL;
	} else if (!first && count == blocks && entry_state(entry)) {
		atomic_store_explicit(&volume->whole, entry, memory_order_release);
	} else {
		error = map_open_whole(volume);
		if (!error)
			error = map_set_run(volume, first, count, entry);
		if (!error)
			map_close_whole(volume);
	}
	pthread_mutex_unlock(&volume->lock);
	return error;
}

static bool sane_entries(const struct vs_volume *volume, uint64_t first, uint64_t count, const uint64_t *entries)
{
	if (!inside(volume, first, count))
		return false;
	for (uint64_t i = 0; i < count; i++)
		if (!sane_run(volume, 1, entries[i]))
			return false;
	return true;
}

static int set_entries(struct vs_volume *volume, uint64_t first, uint64_t count, const uint64_t *entries)
{
	/* before, so that none of these goes again at once */
	map_trim(volume, STEPS * (unsigned)(count / PAGE_ENTRIES + 1));
	int error = map_open_whole(volume);
	for (uint64_t done = 0, take; done < count && !error; done += take) {
		take = PAGE_ENTRIES - (first + done) % PAGE_ENTRIES;
		if (take > count - done)
			take = count - done;
		error = map_set_entries(volume, first + done, take, entries + done);
	}
	if (!error)
		map_close_whole(volume);
	return error;
}

/* Gives up the lock; frees what was replaced where there is much of it. */
static void unlock(struct vs_volume *volume)
{
	bool much = volume->retired_count > MOST_RETIRED;

	pthread_mutex_unlock(&volume->lock);
	if (much)
		vs_volume_drain(volume);
}

int vs_volume_set_entries(vs_volume *volume, uint64_t first, uint64_t count, const uint64_t *entries)
{
	int error = -EINVAL;

	pthread_mutex_lock(&volume->lock);
	if (sane_entries(volume, first, count, entries))
		error = set_entries(volume, first, count, entries);
	unlock(volume);
	return error;
}

/* The record of a PARTIAL block, in *entry instead of its place. */
static int open_partial(struct vs_volume *volume, uint64_t block, const vs_partial *partial, uint64_t *entry)
{
	uint64_t place = *entry & ((1ull << STATE_SHIFT) - 1);

	if (!volume->allocation.keeps_masks || !volume->layers[(*entry >> LAYER_SHIFT) & LAYER_MASK] ||
	    partial->allocated & partial->zero || (partial->allocated | partial->zero) > volume_all_units(volume))
		return -EINVAL;
	struct fresh *fresh = calloc(1, sizeof(*fresh));
	if (!fresh)
		return -ENOMEM;
	*fresh = (struct fresh){ .block = block, .old = partial->beneath, .zero = partial->zero };
	if (partial->shared && partial->allocated) {
		fresh->lent = (uint64_t)VS_SHARED << STATE_SHIFT | place;
		fresh->held = partial->allocated;
	} else if (!partial->shared && (partial->allocated || place & OFFSET_MASK)) {
		fresh->entry = (uint64_t)VS_DATA << STATE_SHIFT | place;
		fresh->valid[0] = partial->allocated;
		fresh->told = true;
	}
	*entry = fresh_entry(fresh);
	return 0;
}

int vs_volume_set_partials(vs_volume *volume, uint64_t first, uint64_t count, const uint64_t *entries,
			   const vs_partial *partials)
{
	uint64_t words[PAGE_ENTRIES], opened = 0;
	int error = 0;

	pthread_mutex_lock(&volume->lock);
	if (count > PAGE_ENTRIES - first % PAGE_ENTRIES || !sane_entries(volume, first, count, entries))
		error = -EINVAL;
	for (; !error && opened < count; opened += !error) {
		words[opened] = entries[opened];
		if (entry_state(entries[opened]) == VS_PARTIAL)
			error = open_partial(volume, first + opened, partials++, &words[opened]);
	}
	if (!error)
		error = set_entries(volume, first, count, words);
	unlock(volume);
	for (uint64_t i = 0; error && i < opened; i++)
		if (entry_state(words[i]) == STATE_FRESH)
			free(fresh_of(words[i]));
	return error;
}

int vs_volume_get_entry(vs_volume *volume, uint64_t block, uint64_t *entry)
{
	uint64_t in_a_row;

	if (block >= volume_blocks(volume))
		return -EINVAL;
	uint32_t entered = epoch_enter(volume);
	*entry = map_look_up(volume, block, &in_a_row);
	epoch_leave(volume, entered);
	return 0;
}

int vs_volume_not_loaded(vs_volume *volume, uint64_t *first, uint64_t *count)
{
	uint64_t begin = *first, end, in_a_row;

	if (!inside(volume, begin, *count))
		return -EINVAL;
	end = begin + *count;
	uint32_t entered = epoch_enter(volume);
	while (begin < end && map_look_up(volume, begin, &in_a_row))
		begin += in_a_row < end - begin ? in_a_row : end - begin;
	*first = begin;
	while (begin < end && !map_look_up(volume, begin, &in_a_row))
		begin += in_a_row < end - begin ? in_a_row : end - begin;
	*count = begin - *first;
	epoch_leave(volume, entered);
	return *count != 0;
}

/* In slices, because writers of new blocks wait for the lock. */
int vs_volume_trim(vs_volume *volume)
{
	bool much = false, done = false;

	for (uint64_t steps = 0; !done; steps += STEPS) {
		pthread_mutex_lock(&volume->lock);
		map_trim(volume, STEPS);
		done = steps > 2 * volume->held_count || map_bytes(volume) <= volume->map_limit;
		much = volume->retired_count > MOST_RETIRED;
		pthread_mutex_unlock(&volume->lock);
	}
	return much ? vs_volume_drain(volume) : 0;
}

int vs_volume_set_map_limit(vs_volume *volume, uint64_t bytes)
{
	if (bytes < LEAST_LIMIT)
		return -EINVAL;
	pthread_mutex_lock(&volume->lock);
	volume->map_limit = bytes;
	map_trim(volume, STEPS);
	pthread_mutex_unlock(&volume->lock);
	return 0;
}

int vs_volume_forget(vs_volume *volume)
{
	pthread_mutex_lock(&volume->lock);
	int error = map_forget(volume);
	pthread_mutex_unlock(&volume->lock);
	return error;
}
