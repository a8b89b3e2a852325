// Threads that share the work of one call.
//
// A job has phases, and each phase has pieces: no piece of a phase begins
// before all of the phase before it are done. A thread claims a piece and then
// works on it. Each thread begins with pieces of its own, the same ones in
// every phase, whose weights lie in its cache; then it takes what nobody has
// claimed. So nobody waits for a thread that has not come, only for one that
// was stopped in the middle of a piece because another process took its
// processor. Whoever waits for that spins for a while and then sleeps, which
// frees a processor; and the late thread stays away for ten times as long, so
// that beside busy processes fewer threads run, and wait little.

#ifndef RECURRENT_KERNELS_CPU_WORKERS_H_
#define RECURRENT_KERNELS_CPU_WORKERS_H_

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace {

// How many processors this process may run on now, at most so many.
inline int64_t Processors(int64_t most) {
  int64_t count = std::thread::hardware_concurrency();
#if defined(__linux__)
  cpu_set_t set;
  if (most > 1 && !sched_getaffinity(0, sizeof(set), &set)) {
    count = CPU_COUNT(&set);
  }
#endif
  return std::max<int64_t>(1, std::min(count, most));
}

class Workers {
 public:
  // Of one phase; the slots that hold who has claimed what are that many.
  static constexpr int64_t kMostPieces = 1024;

  static Workers& Get() {
    static Workers* workers = new Workers;  // never destroyed: its threads outlive main
    return *workers;
  }

  // Calls `work(phase, piece)` for all of them, by up to so many threads. One
  // job has the threads at a time: another waits for them if `wait`, and else
  // is done by the calling thread alone. If pieces are `brief`, beside the time
  // that a busy process has a processor for, a late thread stays away for a
  // while; threads that have long ones to do are better late than absent.
  template <class Work>
  void Run(int64_t threads, int64_t phases, int64_t pieces, bool wait,
           bool brief, const Work& work) {
    std::unique_lock<std::mutex> alone(busy_, std::defer_lock);
    if (threads > 1 && pieces > 1 && pieces <= kMostPieces && phases > 0) {
      if (wait) {
        alone.lock();
      } else {
        (void)alone.try_lock();
      }
    }
    if (!alone.owns_lock()) {
      for (int64_t phase = 0; phase < phases; ++phase) {
        for (int64_t piece = 0; piece < pieces; ++piece) work(phase, piece);
      }
      return;
    }
    Hire(threads);
    call_ = [](const void* job, int64_t phase, int64_t piece) {
      (*static_cast<const Work*>(job))(phase, piece);
    };
    job_ = &work;
    phases_ = phases;
    brief_.store(brief, std::memory_order_relaxed);
    first_ = TurnOf(now_.load(std::memory_order_relaxed)) + 1;
    began_ = Clock();
    threads_wanted_.store(threads, std::memory_order_relaxed);
    left_.store(pieces, std::memory_order_relaxed);
    const uint64_t end = first_ + phases;
    now_.store(Word(first_, pieces));
    if (idle_.load()) {
      std::lock_guard<std::mutex> lock(mutex_);
      begun_.notify_all();
    }
    for (uint64_t now; TurnOf(now = now_.load()) < end;) {
      if (!TakeOwn(0, now)) TakeOrAwait(0, now);
    }
  }

 private:
  // The number of a phase, counted over all jobs, and how many pieces it has
  // (0: no job), in one word: a thread that was away for long and comes back
  // with an old word must not claim a piece by the numbers of a new one.
  static uint64_t Word(uint64_t turn, int64_t pieces) {
    return turn << 16 | static_cast<uint64_t>(pieces);
  }
  static uint64_t TurnOf(uint64_t word) { return word >> 16; }
  static int64_t PiecesOf(uint64_t word) { return word & 0xffff; }

  static int64_t Clock() {  // nanoseconds
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }

  static void Pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  void Hire(int64_t threads) {
    try {
      while (static_cast<int64_t>(threads_.size()) + 1 < threads) {
        threads_.emplace_back(
            [this, me = static_cast<int64_t>(threads_.size()) + 1] {
              Serve(me);
            });
      }
    } catch (const std::system_error&) {  // The others do its work.
    } catch (const std::bad_alloc&) {
    }
  }

  // Does a piece, if nobody has claimed it in this phase. A phase ends when
  // all its pieces are done: so the job stands while a piece of it is claimed.
  bool Take(int64_t me, uint64_t now, int64_t piece) {
    std::atomic<uint64_t>& slot = slots_[piece].claimed;
    const uint64_t turn = TurnOf(now);
    uint64_t seen = slot.load(std::memory_order_relaxed);
    if (seen >= turn || !slot.compare_exchange_strong(seen, turn)) return false;
    call_(job_, turn - first_, piece);
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) Advance(me, now);
    return true;
  }

  // Begins the next phase, or ends the job.
  void Advance(int64_t me, uint64_t now) {
    const uint64_t turn = TurnOf(now);
    const int64_t pieces = PiecesOf(now);
    const bool last = turn + 1 == first_ + phases_;
    const bool late = brief_.load(std::memory_order_relaxed) &&
                      late_.load() == turn;
    if (late) late_thread_.store(me, std::memory_order_relaxed);
    left_.store(pieces, std::memory_order_relaxed);
    now_.store(Word(turn + 1, last ? 0 : pieces));
    // From here on the job may be gone.
    if (asleep_.load()) {
      std::lock_guard<std::mutex> lock(mutex_);
      advanced_.notify_all();
    }
    if (me && late) Rest(late_since_.load(std::memory_order_relaxed));
  }

  // Does the pieces that are this thread's own; whether there were any left.
  bool TakeOwn(int64_t me, uint64_t now) {
    const int64_t pieces = PiecesOf(now);
    const int64_t threads = threads_wanted_.load(std::memory_order_relaxed);
    bool any = false;
    for (int64_t piece = me * pieces / threads;
         piece < std::min(pieces, (me + 1) * pieces / threads); ++piece) {
      any |= Take(me, now, piece);
    }
    return any;
  }

  // Lets the owners begin; then does what they have left; if that is nothing,
  // waits for the next phase.
  void TakeOrAwait(int64_t me, uint64_t now) {
    for (int spins = 0; spins < kGrace; ++spins) {
      if (now_.load(std::memory_order_acquire) != now) return;
      Pause();
    }
    const int64_t pieces = PiecesOf(now);
    bool any = false;
    for (int64_t k = 1; k <= pieces; ++k) {
      any |= Take(me, now, (me + k) % pieces);
    }
    if (any) return;
    const int64_t since = Clock();
    // A phase may well take as long as those before it, and some longer.
    const int64_t phase = TurnOf(now) - first_.load(std::memory_order_relaxed);
    const int64_t mean = (since - began_.load(std::memory_order_relaxed)) /
                         std::max<int64_t>(1, phase + 1);
    const int64_t patience = kPatience + 2 * std::min(mean, kPatience);
    for (int spins = 0; now_.load(std::memory_order_acquire) == now;) {
      Pause();
      if (++spins % 64) continue;
      const int64_t waited = Clock() - since;
      // Who is awaited may be in the queue of this very processor.
      if (waited > kPatience / 4) std::this_thread::yield();
      if (waited < patience) continue;
      late_since_.store(since, std::memory_order_relaxed);
      uint64_t before = late_.load();
      const bool noticed = brief_.load(std::memory_order_relaxed) &&
                           before < TurnOf(now) &&
                           late_.compare_exchange_strong(before, TurnOf(now));
      {
        std::unique_lock<std::mutex> lock(mutex_);
        ++asleep_;
        advanced_.wait(lock, [&] { return now_.load() != now; });
        --asleep_;
      }
      // The caller cannot stay away: another does instead of it.
      if (noticed && me && !late_thread_.load(std::memory_order_relaxed)) {
        Rest(since);
      }
      return;
    }
  }

  // Stays away for ten times as long as another has waited.
  static void Rest(int64_t since) {
    std::this_thread::sleep_for(std::chrono::nanoseconds(
        std::min<int64_t>(10 * (Clock() - since), kLongestRest)));
  }

  // Between two products of a token, or of two tokens, there are microseconds:
  // threads spin for a while before they sleep.
  void Serve(int64_t me) {
    auto wanted = [&](uint64_t now) {
      return PiecesOf(now) &&
             me < threads_wanted_.load(std::memory_order_relaxed);
    };
    for (int spins = 0;;) {
      const uint64_t now = now_.load();
      if (wanted(now)) {
        if (!TakeOwn(me, now)) TakeOrAwait(me, now);
        spins = 0;
      } else if (++spins < kLinger) {
        if (spins % 64 == 0) std::this_thread::yield();
        Pause();
      } else {
        std::unique_lock<std::mutex> lock(mutex_);
        ++idle_;
        begun_.wait(lock, [&] { return wanted(now_.load()); });
        --idle_;
        spins = 0;
      }
    }
  }

  static constexpr int kGrace = 32, kLinger = 2000;  // pauses
  static constexpr int64_t kPatience = 100000, kLongestRest = 100000000;  // ns

  struct alignas(64) Slot {
    std::atomic<uint64_t> claimed{0};  // the number of the latest phase
  };
  Slot slots_[kMostPieces];
  alignas(64) std::atomic<uint64_t> now_{0};
  alignas(64) std::atomic<int64_t> left_{0};
  // Which phase took too long, since when, and who ended such a one.
  alignas(64) std::atomic<uint64_t> late_{0};
  std::atomic<int64_t> late_since_{0}, late_thread_{0};
  std::atomic<int64_t> threads_wanted_{0}, asleep_{0}, idle_{0};
  std::mutex busy_, mutex_;
  std::condition_variable begun_, advanced_;
  std::vector<std::thread> threads_;
  void (*call_)(const void*, int64_t, int64_t) = nullptr;
  const void* job_ = nullptr;
  std::atomic<uint64_t> first_{0};  // the number of the job's first phase
  std::atomic<int64_t> began_{0};
  std::atomic<bool> brief_{false};
  int64_t phases_ = 0;
};

}  // namespace

#endif  // RECURRENT_KERNELS_CPU_WORKERS_H_
