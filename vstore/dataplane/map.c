/*
 * map.c - the block map: where each block of a disk lies, merged over every layer of its chain.
 *
 *   whole  one entry for all blocks in a row (raw)              pages[i]   blocks 512 i .. 512 i + 511:
 *                                                                 0                    not loaded: ask Python
 *                                                                 state in bits 63:60  one run, this is its first entry
 *                                                                 else                 address of 512 entries, | USED
 *
 * Readers take no lock: words are stored whole, and a table that was replaced stays until the next drain (epoch.c).
 * Whoever changes the map holds volume->lock. volume_extent() is the only place in vstore that cuts a range at block
 * boundaries.
 *
 * Memory is bounded: pages of 512 entries stand in held[], and when there are too many a hand goes round there. A page
 * that was looked at since the hand came by last (USED) gets a second chance; another becomes NOT_LOADED again, unless it
 * has a record that a commit has not told of yet. So the map forgets only what the format can tell once more.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>

enum { USED = 1 };

struct page {
	_Atomic uint64_t entries[PAGE_ENTRIES];
	uint64_t number, place; /* pages[number], held[place] */
};

unsigned entry_state(uint64_t entry)
{
	return (unsigned)(entry >> STATE_SHIFT);
}

bool entry_has_offset(uint64_t entry)
{
	return entry_state(entry) == VS_DATA || entry_state(entry) == VS_SHARED || entry_is_kept(entry);
}

bool entry_is_kept(uint64_t entry)
{
	return entry_state(entry) == VS_ZERO && entry & OFFSET_MASK;
}

static uint64_t in_state(uint64_t entry, unsigned state)
{
	return (entry & ((1ull << STATE_SHIFT) - 1)) | (uint64_t)state << STATE_SHIFT;
}

uint64_t entry_kept(uint64_t data)
{
	return in_state(data, VS_ZERO);
}

uint64_t entry_of_kept(uint64_t entry)
{
	return in_state(entry, VS_DATA);
}

/* The entry `blocks` further on in the same run. */
static uint64_t advance(const struct vs_volume *volume, uint64_t entry, uint64_t blocks)
{
	return entry_has_offset(entry) ? entry + (blocks << (volume->shift - SECTOR_SHIFT)) : entry;
}

uint64_t map_blocks(const struct vs_volume *volume, uint64_t length)
{
	return (length >> volume->shift) + ((length & (volume_block_size(volume) - 1)) != 0);
}

uint64_t volume_blocks(const struct vs_volume *volume)
{
	return map_blocks(volume, atomic_load(&volume->length));
}

uint64_t map_pages(const struct vs_volume *volume, uint64_t length)
{
	return map_blocks(volume, length) / PAGE_ENTRIES + 1;
}

/* NULL: it is a run, or not loaded. */
static struct page *page_of(uint64_t word)
{
	return entry_state(word) ? NULL : (struct page *)(uintptr_t)(word & ~(uint64_t)USED);
}

/* ---- looking up -------------------------------------------------------------------------------- */

/* The entry of a block, and how many blocks from it on are known to follow in a row without another look. */
uint64_t map_look_up(struct vs_volume *volume, uint64_t block, uint64_t *in_a_row)
{
	uint64_t entry = atomic_load_explicit(&volume->whole, memory_order_acquire);

	*in_a_row = UINT64_MAX;
	if (LIKELY(entry))
		return advance(volume, entry, block);
	_Atomic uint64_t *slot = &atomic_load_explicit(&volume->pages, memory_order_acquire)[block / PAGE_ENTRIES];
	uint64_t word = atomic_load_explicit(slot, memory_order_acquire);
	unsigned within = block % PAGE_ENTRIES;
	if (!word || entry_state(word)) {
		*in_a_row = PAGE_ENTRIES - within;
		return advance(volume, word, within);
	}
	*in_a_row = 1;
	entry = atomic_load_explicit(&page_of(word)->entries[within], memory_order_acquire);
	/* only if nobody has put another word there meanwhile */
	if (UNLIKELY(!(word & USED)))
		atomic_compare_exchange_strong_explicit(slot, &word, word | USED, memory_order_relaxed,
							memory_order_relaxed);
	return entry;
}

/* What an entry says of `length` bytes at `within` its block. */
struct extent entry_extent(uint64_t entry, uint64_t within, uint64_t length)
{
	struct extent extent = { .state = entry_state(entry), .length = length };

	if (entry_has_offset(entry) || extent.state == VS_COMPRESSED)
		extent.layer = (entry >> LAYER_SHIFT) & LAYER_MASK;
	if (extent.state == VS_COMPRESSED)
		extent.offset = entry & OFFSET_MASK;
	if (entry_has_offset(entry))
		extent.offset = ((entry & OFFSET_MASK) << SECTOR_SHIFT) + within;
	return extent;
}

struct extent volume_extent(struct vs_volume *volume, uint64_t offset, uint64_t length)
{
	uint64_t block = offset >> volume->shift, within = offset & ((1ull << volume->shift) - 1);
	uint64_t in_a_row, entry = map_look_up(volume, block, &in_a_row);
	struct extent extent = entry_extent(entry, within, length);

	if (in_a_row == UINT64_MAX)
		return extent;
	if (entry_state(entry) == STATE_FRESH)
		return allocate_extent(volume, offset, length);
	uint64_t have = (in_a_row << volume->shift) - within;
	/* a place that is compressed is a single block's */
	bool alone = extent.state == VS_COMPRESSED && extent.offset;
	if (alone)
		have = volume_block_size(volume) - within;
	while (have < length && !alone) {
		uint64_t next = block + in_a_row, more;

		if (map_look_up(volume, next, &more) != advance(volume, entry, in_a_row))
			break;
		in_a_row += more;
		have += more << volume->shift;
	}
	if (have < length)
		extent.length = have;
	return extent;
}

/* ---- pages; all of this under the lock ------------------------------------------------------------ */

static struct fresh *fresh_at(const struct page *page, unsigned within)
{
	uint64_t entry = atomic_load_explicit(&page->entries[within], memory_order_relaxed);

	return entry_state(entry) == STATE_FRESH ? (struct fresh *)(uintptr_t)(entry & OFFSET_MASK) : NULL;
}

/* A page that is not in the map yet; NULL without memory. Its entries are 0, or those of the run `word`. */
static struct page *page_new(struct vs_volume *volume, uint64_t number, uint64_t word)
{
	if (volume->held_count == volume->held_room) {
		uint64_t room = volume->held_room ? 2 * volume->held_room : 64;
		struct page **held = realloc(volume->held, room * sizeof(struct page *));

		if (!held)
			return NULL;
		volume->held = held;
		volume->held_room = room;
	}
	struct page *page = calloc(1, sizeof(*page));
	if (!page)
		return NULL;
	for (unsigned i = 0; word && i < PAGE_ENTRIES; i++)
		atomic_store_explicit(&page->entries[i], advance(volume, word, i), memory_order_relaxed);
	page->number = number;
	page->place = volume->held_count;
	volume->held[volume->held_count++] = page;
	volume->newest = page;
	return page;
}

/* The entry is about to go, and its record with it: nobody looks at one without the lock. One that is not idle has a place
 * in a batch, from where the next commit takes it. */
static void forget_record(struct vs_volume *volume, const struct page *page, uint64_t within)
{
	struct fresh *fresh = fresh_at(page, (unsigned)within);

	if (!fresh)
		return;
	volume->records--;
	if (fresh_idle(fresh))
		free(fresh);
}

/* `word` takes the place of whatever says where the page's blocks lie. */
static void put_word(struct vs_volume *volume, uint64_t number, uint64_t word)
{
	struct page *old = page_of(atomic_exchange(&volume->pages[number], word));

	if (!old)
		return;
	for (unsigned i = 0; i < PAGE_ENTRIES; i++)
		forget_record(volume, old, i);
	struct page *last = volume->held[--volume->held_count];
	last->place = old->place;
	volume->held[old->place] = last;
	volume_retire(volume, old, 0);
}

static void put_page(struct vs_volume *volume, struct page *page)
{
	put_word(volume, page->number, (uint64_t)(uintptr_t)page | USED);
}

/* The page's entries, made from its run when it is one. */
static struct page *page_opened(struct vs_volume *volume, uint64_t number)
{
	uint64_t word = atomic_load(&volume->pages[number]);
	struct page *page = page_of(word);

	if (!page && (page = page_new(volume, number, word)))
		put_page(volume, page);
	return page;
}

/* All or, without memory, nothing of it: only the pages that it covers in part need any. */
int map_set_run(struct vs_volume *volume, uint64_t first, uint64_t count, uint64_t entry)
{
	uint64_t end = first + count;

	if ((first % PAGE_ENTRIES && !page_opened(volume, first / PAGE_ENTRIES)) ||
	    (end % PAGE_ENTRIES && !page_opened(volume, end / PAGE_ENTRIES)))
		return -ENOMEM;
	while (count) {
		uint64_t number = first / PAGE_ENTRIES, within = first % PAGE_ENTRIES;
		uint64_t take = PAGE_ENTRIES - within < count ? PAGE_ENTRIES - within : count;

		if (take == PAGE_ENTRIES) {
			put_word(volume, number, entry);
		} else {
			struct page *page = page_of(atomic_load(&volume->pages[number]));
			for (uint64_t i = 0; i < take; i++) {
				forget_record(volume, page, within + i);
				atomic_store_explicit(&page->entries[within + i], advance(volume, entry, i),
						      memory_order_release);
			}
		}
		entry = advance(volume, entry, take);
		first += take;
		count -= take;
	}
	return 0;
}

/* One run of all blocks becomes pages. */
int map_open_whole(struct vs_volume *volume)
{
	uint64_t whole = atomic_load(&volume->whole);
	int error = 0;

	if (whole)
		error = map_set_run(volume, 0, volume_blocks(volume), whole);
	return error;
}

void map_close_whole(struct vs_volume *volume)
{
	if (atomic_load(&volume->whole))
		atomic_store_explicit(&volume->whole, 0, memory_order_release);
}

static int store(struct vs_volume *volume, uint64_t block, uint64_t entry)
{
	struct page *page = page_opened(volume, block / PAGE_ENTRIES);

	if (!page)
		return -ENOMEM;
	volume->records -= fresh_at(page, block % PAGE_ENTRIES) != NULL;
	volume->records += entry_state(entry) == STATE_FRESH;
	atomic_store_explicit(&page->entries[block % PAGE_ENTRIES], entry, memory_order_release);
	return 0;
}

/* A single block's record, when it has one, stays the caller's. */
int map_store(struct vs_volume *volume, uint64_t first, uint64_t count, uint64_t entry)
{
	int error = map_open_whole(volume);

	if (!error)
		error = count == 1 ? store(volume, first, entry) : map_set_run(volume, first, count, entry);
	if (!error)
		map_close_whole(volume);
	return error;
}

static bool is_run(const struct vs_volume *volume, uint64_t count, const uint64_t *entries)
{
	for (uint64_t i = 1; i < count; i++)
		if (entries[i] != advance(volume, entries[0], i))
			return false;
	return entry_state(entries[0]) != STATE_FRESH;
}

/* Blocks of one page: at once or not at all. */
int map_set_entries(struct vs_volume *volume, uint64_t first, uint64_t count, const uint64_t *entries)
{
	uint64_t number = first / PAGE_ENTRIES, within = first % PAGE_ENTRIES;
	bool all = !within && (count == PAGE_ENTRIES || first + count == volume_blocks(volume));
	const struct page *old = page_of(atomic_load(&volume->pages[number]));

	for (uint64_t i = 0; old && i < count; i++)
		if (fresh_at(old, (unsigned)(within + i)))
			return -EBUSY; /* a write was quicker: what it has allocated must not be forgotten */
	if (all && is_run(volume, count, entries)) {
		put_word(volume, number, entries[0]);
		return 0;
	}
	struct page *page = all ? page_new(volume, number, 0) : page_opened(volume, number);
	if (!page)
		return -ENOMEM;
	for (uint64_t i = 0; i < count; i++) {
		volume->records += entry_state(entries[i]) == STATE_FRESH;
		atomic_store_explicit(&page->entries[within + i], entries[i], memory_order_release);
	}
	if (all)
		put_page(volume, page);
	return 0;
}

/* ---- forgetting ----------------------------------------------------------------------------------- */

static bool all_idle(const struct page *page)
{
	for (unsigned i = 0; i < PAGE_ENTRIES; i++) {
		const struct fresh *fresh = fresh_at(page, i);
		if (fresh && !fresh_idle(fresh))
			return false;
	}
	return true;
}

uint64_t map_bytes(const struct vs_volume *volume)
{
	return volume->held_count * (sizeof(struct page) + sizeof(struct page *)) +
	       volume->records * sizeof(struct fresh);
}

void map_trim(struct vs_volume *volume, unsigned steps)
{
	if (zeros_pending(volume))
		return;
	for (unsigned step = 0; step < steps && volume->held_count && map_bytes(volume) > volume->map_limit; step++) {
		volume->hand %= volume->held_count;
		struct page *page = volume->held[volume->hand];
		uint64_t word = atomic_fetch_and(&volume->pages[page->number], ~(uint64_t)USED);

		if (word & USED || page == volume->newest || !all_idle(page))
			volume->hand++;
		else
			put_word(volume, page->number, VS_NOT_LOADED);
	}
}

int map_forget(struct vs_volume *volume)
{
	if (!atomic_load(&volume->quiesced) || volume->batch || volume->committing || volume->commit_open ||
	    zeros_pending(volume))
		return -EBUSY;
	for (uint64_t i = 0; i < volume->held_count; i++)
		if (!all_idle(volume->held[i]))
			return -EBUSY;
	_Atomic uint64_t *pages = calloc(volume->page_count, sizeof(*pages));
	packed_forget(volume);
	while (volume->held_count)
		put_word(volume, volume->held[volume->held_count - 1]->number, VS_NOT_LOADED);
	/* the image has changed already: it must not fail, so without memory it takes its time */
	for (uint64_t i = 0; !pages && i < volume->page_count; i++)
		atomic_store_explicit(&volume->pages[i], VS_NOT_LOADED, memory_order_release);
	if (pages) {
		volume_retire(volume, (void *)volume->pages, 0);
		atomic_store_explicit(&volume->pages, pages, memory_order_release);
	}
	atomic_store_explicit(&volume->whole, 0, memory_order_release);
	return 0;
}

void map_free(struct vs_volume *volume)
{
	for (uint64_t i = 0; i < volume->held_count; i++) {
		for (unsigned within = 0; within < PAGE_ENTRIES; within++)
			free(fresh_at(volume->held[i], within));
		free(volume->held[i]);
	}
	free(volume->held);
	free((void *)volume->pages);
}
