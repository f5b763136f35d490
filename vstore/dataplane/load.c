/*
 * load.c - what Python tells of the block map: runs for disks that lie in a row, else pages of entries as they are wanted,
 * each checked whole before any of it counts. And how much of the map is kept.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>

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

static int set_entries(struct vs_volume *volume, uint64_t first, uint64_t count, const uint64_t *entries)
{
	if (!inside(volume, first, count))
		return -EINVAL;
	for (uint64_t i = 0; i < count; i++)
		if (!sane_run(volume, 1, entries[i]))
			return -EINVAL;
	/* before, so that none of these goes again while their caller makes records in them */
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

int vs_volume_set_entries(vs_volume *volume, uint64_t first, uint64_t count, const uint64_t *entries)
{
	pthread_mutex_lock(&volume->lock);
	int error = set_entries(volume, first, count, entries);
	bool much = volume->retired_count > MOST_RETIRED;
	pthread_mutex_unlock(&volume->lock);
	if (much)
		vs_volume_drain(volume);
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
