/* XBZRLE decoding by every SIMD level that this CPU has, under libFuzzer and ASan: exactly sized heap buffers, so that
 * one byte read or written outside is an error. The levels must agree with the portable one, check with decode, and
 * an encoding made of the result must decode to it again. */
#include <stdlib.h>

#include "simd/dispatch.h"

#define REQUIRE(what) do { if (!(what)) __builtin_trap(); } while (0)

static uint8_t *copy_of(const uint8_t *from, size_t n)
{
    uint8_t *to = malloc(n ? n : 1);

    if (n)
        memcpy(to, from, n);
    return to;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const colo_kernels *levels[COLO_LEVELS_MAX];
    int count = colo_levels(levels), covered = 0;
    uint8_t *first = NULL, *old;

    if (size < 1)
        return 0;
    int page_bytes = COLO_PAGE_BYTES_MIN << (data[0] % 7);
    old = malloc(page_bytes);
    for (int i = 0; i < page_bytes; i++)
        old[i] = data[0] & 0x80 ? 0 : (uint8_t)(i * 7 + i / 251);
    uint8_t *encoded = copy_of(data + 1, size - 1);
    int length = (int)size - 1;

    for (int i = 0; i < count; i++) {
        uint8_t *page = copy_of(old, page_bytes);
        int verdict = levels[i]->xbzrle_check(encoded, length, page_bytes);
        int made = levels[i]->xbzrle_decode(encoded, length, page, page_bytes);
        REQUIRE(made == verdict);
        if (i == 0) {
            covered = made;
            first = copy_of(page, page_bytes);
        }
        REQUIRE(made == covered);
        if (made >= 0) {
            REQUIRE(!memcmp(page, first, page_bytes));
            uint8_t *again = malloc(page_bytes + COLO_XBZRLE_SLACK), *twice = copy_of(old, page_bytes);
            int n = levels[i]->xbzrle_encode(old, page, page_bytes, again, page_bytes);
            if (n > 0) {
                uint8_t *exact = copy_of(again, n);
                REQUIRE(levels[i]->xbzrle_decode(exact, n, twice, page_bytes) >= 0);
                free(exact);
            }
            if (n >= 0)
                REQUIRE(!memcmp(twice, page, page_bytes));
            free(again);
            free(twice);
        }
        free(page);
    }
    free(first);
    free(old);
    free(encoded);
    return 0;
}
