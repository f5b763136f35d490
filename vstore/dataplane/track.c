/*
 * track.c - which granules of the disk writes have touched, for formats that keep bitmaps of it: a bit a granule, in chunks
 * that are made when a write first meets them, so that a large disk of which little changes costs little.
 *
 * A write is noted when it begins, by whoever has leave to write (see epoch.c). Reading the bits and beginning anew are for
 * a quiesced volume, so nobody notes anything meanwhile.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>

enum { CHUNK_SHIFT = 15, CHUNK_WORDS = (1 << CHUNK_SHIFT) / 64 };

struct track {
	uint32_t shift; /* log2 of the granule */
	uint64_t chunk_count;
	_Atomic bool lost; /* there was no memory for some bits */
	_Atomic(_Atomic uint64_t *) chunks[];
};

void track_free(struct track *track)
{
	for (uint64_t i = 0; track && i < track->chunk_count; i++)
		free((void *)atomic_load(&track->chunks[i]));
	free(track);
}

static _Atomic uint64_t *chunk_of(struct track *track, uint64_t bit)
{
	uint64_t number = bit >> CHUNK_SHIFT;

	if (number >= track->chunk_count)
		return NULL;
	_Atomic uint64_t *chunk = atomic_load(&track->chunks[number]), *none = NULL;
	if (chunk)
		return chunk;
	chunk = calloc(CHUNK_WORDS, sizeof(*chunk));
	if (chunk && !atomic_compare_exchange_strong(&track->chunks[number], &none, chunk)) {
		free((void *)chunk);
		chunk = none;
	}
	return chunk;
}

void track_range(struct track *track, uint64_t offset, uint64_t length)
{
	if (!length)
		return;
	uint64_t bit = offset >> track->shift, end = ((offset + length - 1) >> track->shift) + 1;

	while (bit < end) {
		uint64_t take = 64 - bit % 64 < end - bit ? 64 - bit % 64 : end - bit;
		uint64_t mask = (take < 64 ? (1ull << take) - 1 : UINT64_MAX) << bit % 64;
		_Atomic uint64_t *chunk = chunk_of(track, bit);

		if (!chunk) {
			atomic_store(&track->lost, true);
			return;
		}
		_Atomic uint64_t *word = &chunk[bit % (1 << CHUNK_SHIFT) / 64];
		if ((atomic_load_explicit(word, memory_order_relaxed) & mask) != mask)
			atomic_fetch_or(word, mask);
		bit += take;
	}
}

int vs_volume_track(vs_volume *volume, uint32_t shift)
{
	uint64_t length = atomic_load(&volume->length), chunks = ((length >> shift) >> CHUNK_SHIFT) + 1;

	if (shift < SECTOR_SHIFT || shift > 31)
		return -EINVAL;
	if (!atomic_load(&volume->quiesced))
		return -EBUSY;
	struct track *track = calloc(1, sizeof(*track) + chunks * sizeof(track->chunks[0]));
	if (!track)
		return -ENOMEM;
	track->shift = shift;
	track->chunk_count = chunks;
	track_free(atomic_exchange(&volume->track, track));
	return 0;
}

static bool is_set(const struct track *track, uint64_t bit)
{
	_Atomic uint64_t *chunk = atomic_load(&track->chunks[bit >> CHUNK_SHIFT]);

	return chunk && chunk[bit % (1 << CHUNK_SHIFT) / 64] >> bit % 64 & 1;
}

/* The first bit from `bit` on that is set, or is not. */
static uint64_t find(const struct track *track, uint64_t bit, bool set)
{
	uint64_t end = track->chunk_count << CHUNK_SHIFT;

	while (bit < end && is_set(track, bit) != set)
		bit = atomic_load(&track->chunks[bit >> CHUNK_SHIFT]) ? bit + 1
								      : ((bit >> CHUNK_SHIFT) + 1) << CHUNK_SHIFT;
	return bit;
}

int vs_volume_tracked(vs_volume *volume, uint64_t *offset, uint64_t *length)
{
	struct track *track = atomic_load(&volume->track);
	uint64_t disk = atomic_load(&volume->length);

	if (!track)
		return 0;
	if (atomic_load(&track->lost))
		return -ENOMEM;
	uint64_t after = (*offset >> track->shift) + !!(*offset & ((1ull << track->shift) - 1)); /* its own was told */
	uint64_t first = find(track, after, true), end = find(track, first, false);
	if (first == end || first << track->shift >= disk)
		return 0;
	*offset = first << track->shift;
	*length = (end << track->shift < disk ? end << track->shift : disk) - *offset;
	return 1;
}
