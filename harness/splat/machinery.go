// SPDX-License-Identifier: BSD-3-Clause

package splat

import "regexp"

// machinery matches functions that find, check or report faults, or copy bytes
// for somebody else. They are at the top of many stacks and never at fault.
var machinery = regexp.MustCompile(`^(?:` +
	// Dumping and dying.
	`dump_stack(?:_lvl)?|show_stack|show_regs|__show_regs|show_trace_log_lvl|sched_show_task|` +
	`print_report|print_address_description|report_bug|handle_bug|__warn(?:_printk)?|warn_slowpath_\w+|` +
	`panic|vpanic|nmi_panic|die(?:_addr)?|__die(?:_body)?|oops_end|page_fault_oops|kernelmode_fixup_or_oops|no_context|` +
	`(?:__)?bad_area\w*|do_user_addr_fault|do_kern_addr_fault|exc_\w+|asm_exc_\w+|do_trap|do_error_trap|do_invalid_op|check_panic_on_warn|` +
	// NMIs and interrupts that came to look.
	`nmi_cpu_backtrace\w*|nmi_trigger_cpumask_backtrace|arch_trigger_cpumask_backtrace|nmi_handle|default_do_nmi|end_repeat_nmi|trigger_\w+_backtrace|` +
	`rcu_dump_cpu_stacks|rcu_check_gp_kthread_\w+|print_cpu_stall|print_other_cpu_stall|check_cpu_stall|rcu_sched_clock_irq|update_process_times|tick_\w+|` +
	`(?:__)?hrtimer_\w+|(?:__)?sysvec_\w+|asm_sysvec_\w+|watchdog_\w+|check_hung_\w+|` +
	// Sanitizers, hardening, debugging of memory.
	`(?:__)?kasan_\w+|__asan_\w+|__hwasan_\w+|check_memory_region|(?:__)?kfence_\w+|(?:__)?kcsan_\w+|__tsan_\w+|(?:__)?kmsan_\w+|__msan_\w+|` +
	`(?:__)?ubsan_\w+|__ubsan_\w+|handle_overflow|fortify_panic|__fortify_\w+|usercopy_abort|__check_object_size|__check_heap_object|check_\w*copy\w*|__stack_chk_fail|` +
	`refcount_warn_saturate|(?:__)?refcount_\w+|__list_(?:add|del)_\w+|skb_panic|skb_(?:over|under)_panic|debug_print_object|(?:__)?debug_object_\w+|debug_check_no_obj_freed|` +
	`slab_(?:err|bug|fix|pad_check|free_hook|post_alloc_hook)|object_err|print_trailer|print_tracking|check_(?:bytes_and_report|object|slab|poison_obj)|on_freelist|(?:free|alloc)_(?:debug_processing|to_partial_list)|free_consistency_checks|` +
	`_{1,3}slab_(?:free|alloc)\w*|slab_alloc_node|kfree|kvfree|kmem_cache_\w+|__kmem_cache_\w+|(?:__)?k[vmz]\w*alloc\w*|kmemleak_\w+|krealloc\w*|kmemdup\w*|bad_page|free_(?:page_is_bad|unref_page\w*|pcppages_bulk|unref_folios)|__free_pages\w*|` +
	// Locks and context checks.
	`(?:__)?might_\w+|__might_resched|__cant_\w+|check_preemption_disabled|debug_smp_processor_id|__this_cpu_preempt_check|` +
	`(?:print|check|mark|validate|__lock)_\w*(?:circular|deadlock|usage|lock|chain|noncircular|irq|bug|prev)\w*|lock_(?:acquire|release|is_held_type)|__lock_\w+|register_lock_class|assign_lock_key|lockdep_\w+|debug_(?:check|show)\w*lock\w*|reacquire_held_locks|` +
	`_raw_(?:spin|read|write)_\w+|do_raw_(?:spin|read|write)_\w+|native_queued_spin_lock_slowpath|queued_\w+_slowpath|pv_\w+_slowpath|spin_(?:bug|dump)|rwlock_bug|` +
	`(?:__)?mutex_(?:lock|unlock|trylock)\w*|__mutex_\w+|down_(?:read|write)\w*|up_(?:read|write)\w*|rwsem_\w+|` +
	// Waiting.
	`(?:__)?schedule(?:_\w+)?|__schedule_bug|preempt_schedule\w*|context_switch|io_schedule\w*|(?:do_)?wait_for_com\w+|__wait_for_common|wait_for_completion\w*|prepare_to_\w+|__?lock_sock\w*|lock_sock\w*|` +
	// Copying.
	`mem(?:cpy|set|move|cmp|chr)(?:_\w+)?|__mem(?:cpy|set|move)\w*|str(?:len|nlen|cpy|cmp|ncmp|lcpy|scpy)\w*|sized_strscpy|rep_(?:movs|stos)\w*|copy_user\w*|_copy_(?:to|from)_user|__?clear_user\w*|copyin|copyout|csum_partial\w*|` +
	`__x86_\w*thunk\w*|__sanitizer_\w+|ret_from_fork_asm` +
	`)$`)

// idle matches where a processor waits, for work or for another processor: in a
// backtrace of all processors those are not the ones that hang.
var idle = regexp.MustCompile(`^(?:smp_call_function_\w+|csd_lock_wait\w*|multi_cpu_stop|native_queued_spin_lock_slowpath|queued_\w+_slowpath|pv_\w+_slowpath|default_idle\w*|native_safe_halt|pv_native_safe_halt|native_halt|acpi_\w*idle\w*|mwait_idle\w*|intel_idle\w*|cpuidle_\w+|arch_cpu_idle|poll_idle|cpu_idle_poll|do_idle|io_idle|__cpuidle_text_start)$`)

func isMachinery(function string) bool { return machinery.MatchString(baseName(function)) }

func isIdle(function string) bool { return idle.MatchString(baseName(function)) }
